# SPDX-License-Identifier: Apache-2.0
"""The heartbeat of an enclave whose units decide when it is due."""

from __future__ import annotations

from collections.abc import Callable

from enclavekit_enclave_init.runtime.event_loop import EventLoop
from enclavekit_enclave_init.supervision.state import State


class ReadyHeartbeat:
    """Sends the heartbeat once all units with HeartbeatWaits are up; without it, or if one fails, the enclave ends."""

    def __init__(self, loop: EventLoop, send: Callable[[], None], fail: Callable[[str], None]) -> None:
        """Begin to watch. `send` runs in a child. `fail` is told why the boot has failed."""
        self._loop, self._send, self._fail = loop, send, fail
        records = loop.supervisor.records.values()
        self._waits_for = {
            record.unit.name for record in records if record.unit.heartbeat_waits and record.unit.enabled
        }
        loop.observers.append(self._on_change)

    def _on_change(self, name: str, state: str) -> None:
        if name not in self._waits_for or self._loop.supervisor.is_ending:
            return
        if state in (State.FAILED.value, State.STOPPED.value):
            self._loop.observers.remove(self._on_change)
            self._fail(f"{name} is {state} before the heartbeat")
        elif all(self._loop.supervisor.is_up(waited) for waited in self._waits_for):
            self._loop.observers.remove(self._on_change)
            self._loop.run_helper(self._send, lambda problem: self._fail(problem) if problem else None)
