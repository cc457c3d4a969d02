# SPDX-License-Identifier: Apache-2.0
"""Tells when a unit has become what was asked for, or will not: who starts one wants to hear how it went."""

from __future__ import annotations

import enum
from collections.abc import Callable

from enclavekit_enclave_init.runtime.control import Control
from enclavekit_enclave_init.supervision.state import State, UnitStatus


class Goal(enum.Enum):
    UP = "up"
    DOWN = "down"


_UP = {State.RUNNING.value, State.DONE.value}
_DOWN = {State.DONE.value, State.FAILED.value, State.STOPPED.value}
_NOT_COMING = {State.FAILED.value, State.STOPPED.value, State.BACKOFF.value}


def judge(unit: UnitStatus | None, name: str, goal: Goal, old_pid: int | None = None) -> str | None:
    """Return None while it is not decided, "" if the unit is as it should be, else why it will not be. Pure.

    Args:
        old_pid: of the process that is to go first; one that is restarted is up as long as others lean on it.
    """
    if goal is Goal.DOWN:
        return "" if unit is None or unit.state in _DOWN else None
    if unit is None:
        return f"cannot start {name}: its file has gone"
    if unit.state in _UP:
        return "" if unit.pid is None or unit.pid != old_pid else None
    if unit.state in _NOT_COMING:
        again = "; it is tried again" if unit.state == State.BACKOFF.value else ""
        return f"cannot start {name}: {unit.reason or unit.failure or _how_it_ended(unit)}{again}"
    return None


def _how_it_ended(unit: UnitStatus) -> str:
    if unit.signal is not None:
        return f"killed by signal {unit.signal}"
    return unit.state if unit.exit_status is None else f"exited with {unit.exit_status}"


class Waiting:
    """Watches units on behalf of connections."""

    def __init__(self, control: Control) -> None:
        self._control = control

    def wait_for(
        self, name: str, goal: Goal, on_settled: Callable[[str], None], old_pid: int | None = None
    ) -> Callable[[], None]:
        """Call `on_settled` with "" or the failure, now or later; returns what gives it up."""
        unobserve: list[Callable[[], None]] = []

        def look(unit: str, _state: str = "") -> None:
            if unit != name or not unobserve:
                return
            found = next((status for status in self._control.snapshot() if status.name == name), None)
            verdict = judge(found, name, goal, old_pid)
            if verdict is not None:
                give_up()
                on_settled(verdict)

        def give_up() -> None:
            if unobserve:
                unobserve.pop()()

        unobserve.append(self._control.observe(look))
        look(name)
        return give_up
