# SPDX-License-Identifier: Apache-2.0
"""What the supervisor knows: every unit's record, their order, how it all is to end, and what is to be done. Pure.

The modules beside this one are what happens to a unit in each part of its life, as functions on the book; they say what
is to be done by adding actions here, and `Supervisor.settle` hands those out.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from enclavekit_enclave_init.supervision import events as ev
from enclavekit_enclave_init.supervision.events import Action, Ending, Event, Outcome, Slot, Timer
from enclavekit_enclave_init.supervision.state import Record, State
from enclavekit_enclave_init.units.commands import Command
from enclavekit_enclave_init.units.ordering import StartPlan
from enclavekit_enclave_init.units.unit import Unit


class Book:
    """The state of an enclave's units."""

    def __init__(self, units: Iterable[Unit], plan: StartPlan) -> None:
        self.plan = plan
        self.records = {unit.name: Record(unit) for unit in units}
        for name, record in self.records.items():
            if name not in plan.after:
                record.state, record.reason = State.STOPPED, "disabled"
        self.outcome: Outcome | None = None
        """How it is to end, as soon as that is decided."""
        self.now = 0.0
        """Seconds of a monotonic clock, at the event or the request that is dealt with."""
        self._actions: list[Action] = []

    @property
    def is_ending(self) -> bool:
        """Everything stops, or has."""
        return self.outcome is not None

    def is_up(self, name: str) -> bool:
        """Say whether those that require the unit may start: it runs, or was a oneshot and has ended well."""
        return self.records[name].state in (State.RUNNING, State.DONE)

    def dependents_of(self, name: str) -> list[Record]:
        """Return those that require the unit."""
        return [
            self.records[dependent]
            for dependent, required in self.plan.requires.items()
            if name in required and dependent in self.records
        ]

    # what is to be done ---------------------------------------------------------------------------------------

    def act(self, action: Action) -> None:
        self._actions.append(action)

    def note(self, text: str) -> None:
        self._actions.append(ev.Note(text))

    def take_actions(self) -> list[Action]:
        """Return what has come together, in order, and begin anew."""
        actions, self._actions = self._actions, []
        return actions

    def enter(self, record: Record, state: State, reason: str = "") -> None:
        record.state, record.since_s, record.reason = state, self.now, reason
        self.act(ev.Changed(record.unit.name, state.value))

    def set_timer(self, record: Record, delay_s: float, timer: Timer = Timer.STATE) -> None:
        record.armed.add(timer)
        self.act(ev.SetTimer(record.unit.name, delay_s, timer))

    def cancel_timer(self, record: Record, timer: Timer = Timer.STATE) -> None:
        if timer in record.armed:
            record.armed.discard(timer)
            self.act(ev.CancelTimer(record.unit.name, timer))

    # the commands of a unit, one after the other --------------------------------------------------------------

    def run_commands(self, record: Record, commands: tuple[Command, ...]) -> None:
        record.queue = list(range(len(commands)))
        self.act(ev.SpawnCommand(record.unit.name, Slot.COMMAND, commands[0].argv))

    def next_command(self, record: Record, event: Event, commands: tuple[Command, ...], kind: str) -> Ending | None:
        """Go on to the next command; return what to blame if there is to be none, with the kind in it."""
        assert isinstance(event, ev.CommandExited)
        command = commands[record.queue.pop(0)] if record.queue and record.queue[0] < len(commands) else None
        if command is None:  # its file has changed meanwhile and lists fewer
            record.queue.clear()
        if not event.ending.succeeded and not (command is not None and command.ignores_failure):
            record.queue.clear()
            return replace(event.ending, failure=f"{kind} {event.ending}")
        record.queue = [index for index in record.queue if index < len(commands)]
        if record.queue:
            self.act(ev.SpawnCommand(record.unit.name, Slot.COMMAND, commands[record.queue[0]].argv))
        return None

    def drop_command(self, record: Record) -> None:
        record.queue.clear()
        self.act(ev.DropCommand(record.unit.name, Slot.COMMAND))


def blame(ending: Ending, failure: str) -> Ending:
    """Return a bad end, whatever the status was."""
    return replace(ending, exit_status=ending.exit_status or None, failure=failure)
