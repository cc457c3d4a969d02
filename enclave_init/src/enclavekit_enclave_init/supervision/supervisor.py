# SPDX-License-Identifier: Apache-2.0
"""The state of every unit, as a state machine: events and times in, actions out. Pure.

The shell (`event_loop`) runs the actions in the order given and reports what happened as events. `TRANSITIONS` lists
every pair of state and event that can occur; any other is a bug of the shell and raises LocalProtocolError. What
people may ask for while it runs is in `operations`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from enclavekit_core.errors import LocalProtocolError

from enclavekit_enclave_init.supervision import duty, ending, ripple, starting
from enclavekit_enclave_init.supervision import events as ev
from enclavekit_enclave_init.supervision.book import Book
from enclavekit_enclave_init.supervision.events import Action, Event, Outcome, Slot, Timer
from enclavekit_enclave_init.supervision.state import ACTIVE, HALTING, Record, State, Stop, UnitStatus, describe
from enclavekit_enclave_init.units.ordering import StartPlan
from enclavekit_enclave_init.units.unit import Unit


class Supervisor:
    """Decides what to start, restart, stop and kill."""

    def __init__(self, units: Iterable[Unit], plan: StartPlan) -> None:
        self._book = Book(units, plan)
        self._finished = False

    @property
    def plan(self) -> StartPlan:
        """The order of the units."""
        return self._book.plan

    @plan.setter
    def plan(self, plan: StartPlan) -> None:
        self._book.plan = plan

    @property
    def records(self) -> dict[str, Record]:
        """Every unit, by name."""
        return self._book.records

    @property
    def states(self) -> dict[str, State]:
        """The state of every unit."""
        return {name: record.state for name, record in self.records.items()}

    @property
    def is_ending(self) -> bool:
        """Everything stops, or has."""
        return self._book.is_ending

    def is_up(self, name: str) -> bool:
        """Say whether the unit runs, or was a oneshot and has ended well."""
        return self._book.is_up(name)

    def snapshot(self, now: float) -> list[UnitStatus]:
        """Return every unit as plain data, by name; what only the shell knows (pid, cgroup) is None."""
        return [describe(self.records[name], now) for name in sorted(self.records)]

    # what happens ---------------------------------------------------------------------------------------------

    def start(self, now: float) -> list[Action]:
        """Begin: start what waits for nothing. `now` is in seconds of a monotonic clock, as everywhere here."""
        return self.settle(now)

    def handle(self, event: Event, now: float) -> list[Action]:
        """Return what is to be done about `event`. Raises LocalProtocolError if it cannot occur in this state."""
        book = self._book
        book.now = now
        record = book.records.get(event.unit)
        if record is None:  # its file has gone, and so has it
            return self.settle(now)
        if isinstance(event, ev.TimerFired):
            record.armed.discard(event.timer)
        if isinstance(event, ev.Notified):
            duty.on_notified(book, record, event)
        elif isinstance(event, ev.TimerFired) and event.timer is not Timer.STATE:
            duty.on_duty_timer(book, record, event.timer)
        elif isinstance(event, ev.CommandExited) and event.slot is Slot.HEALTH:
            duty.on_health(book, record, event.ending)
        else:
            transition = TRANSITIONS.get((record.state, type(event)))
            if transition is None:
                kind = type(event).__name__
                raise LocalProtocolError(f"cannot take {kind} for {event.unit}: it is {record.state.value}")
            transition(book, record, event)
        return self.settle(now)

    def stop_all(self, reason: str, now: float, kind: str = "poweroff") -> list[Action]:
        """Stop everything in order, then power off or reboot. Only the first reason counts."""
        self._book.now = now
        ripple.stop_everything(self._book, Outcome(reason, kind=kind))
        return self.settle(now)

    def settle(self, now: float) -> list[Action]:
        """Start and stop whatever the states now allow; return all that is to be done."""
        book = self._book
        book.now = now
        if not book.is_ending:
            for name in book.plan.order:
                record = book.records.get(name)
                if record is not None and record.state is State.WAITING:
                    starting.start_if_ready(book, record)
        # in reverse, a unit is asked to stop only when all that were started after it are gone
        for name in (*self._outside_plan(), *reversed(book.plan.order)):
            record = book.records.get(name)
            halts = record is not None and record.stop is not None and record.state in ACTIVE - HALTING
            if record is not None and halts and not self._is_leaned_on(name):
                ending.begin_stop(book, record)
        at_rest = not any(record.state in ACTIVE for record in book.records.values())
        if book.outcome is not None and at_rest and not self._finished:
            self._finished = True
            book.act(ev.PowerOff(self._complete(book.outcome)))
        return book.take_actions()

    def _outside_plan(self) -> list[str]:
        return [name for name, record in self.records.items() if record.removed and name not in self.plan.after]

    def _is_leaned_on(self, name: str) -> bool:
        return any(
            name in earlier and later in self.records and self.records[later].stop is not None
            and self.records[later].state in ACTIVE
            for later, earlier in self.plan.after.items()
        )  # fmt: skip

    def _complete(self, outcome: Outcome) -> Outcome:
        """Add how the unit with OnExit ended, if the outcome is not that end itself."""
        if outcome.unit is not None:
            return outcome
        for name in self.plan.order:
            record = self.records.get(name)
            if record is not None and record.unit.powers_off and record.ending is not None:
                return replace(
                    outcome,
                    unit=name,
                    exit_status=record.ending.exit_status,
                    signal=record.ending.signal,
                    out_of_memory=record.ending.out_of_memory,
                )
        return outcome

    # for operations -------------------------------------------------------------------------------------------

    def dependents_of(self, name: str) -> list[Record]:
        """Return those that require the unit."""
        return self._book.dependents_of(name)

    def queue_start(self, record: Record) -> None:
        """Have a unit without a process start as soon as it may."""
        self._book.cancel_timer(record)
        self._book.enter(record, State.WAITING)

    def cancel_start(self, record: Record, reason: str) -> None:
        """Have a unit without a process not start."""
        ripple.cancel_start(self._book, record, reason)

    def request_stop(self, record: Record, stop: Stop) -> None:
        """Have an active unit stop, once those that lean on it have. The first reason holds, except against the end."""
        ending.request_stop(self._book, record, stop)

    def begin_reload(self, record: Record) -> None:
        """Run ExecReload; the state stays."""
        self._book.run_commands(record, record.unit.reload_commands)

    def forget_if_removed(self, record: Record) -> None:
        """Drop a unit that has no process and no file any more."""
        ripple.forget_if_removed(self._book, record)


def _ignore(book: Book, record: Record, event: Event) -> None:
    """It comes too late to matter."""


TRANSITIONS: dict[tuple[State, type], Callable[[Book, Record, Event], None]] = {
    (State.PREPARING, ev.CommandExited): starting.on_prepared,
    (State.PREPARING, ev.TimerFired): starting.on_start_timeout,
    (State.STARTING, ev.Started): starting.on_started,
    (State.STARTING, ev.Exited): starting.on_ended_while_starting,
    (State.STARTING, ev.TimerFired): starting.on_start_timeout,
    # a oneshot or notify unit may be executed before, and end before, its start is complete
    (State.COMPLETING, ev.Started): _ignore,
    (State.COMPLETING, ev.Exited): ending.on_ended,
    (State.COMPLETING, ev.CommandExited): starting.on_completed,
    (State.COMPLETING, ev.TimerFired): starting.on_start_timeout,
    (State.RUNNING, ev.Started): _ignore,
    (State.RUNNING, ev.Exited): ending.on_ended,
    (State.RUNNING, ev.CommandExited): duty.on_reloaded,
    (State.BACKOFF, ev.TimerFired): ending.on_backoff_over,
    (State.ENDING, ev.Started): _ignore,
    (State.ENDING, ev.CommandExited): ending.on_stop_command_done,
    (State.ENDING, ev.Exited): ending.on_main_exit_while_ending,
    (State.ENDING, ev.TimerFired): ending.on_stop_command_timeout,
    (State.STOPPING, ev.Started): _ignore,
    (State.STOPPING, ev.Exited): ending.on_stopped,
    (State.STOPPING, ev.CommandExited): ending.on_stopped,
    (State.STOPPING, ev.TimerFired): ending.on_stop_timeout,
    (State.KILLING, ev.Started): _ignore,
    (State.KILLING, ev.Exited): ending.on_stopped,
    (State.KILLING, ev.CommandExited): ending.on_stopped,
    (State.KILLING, ev.TimerFired): ending.on_unkillable,
    # left behind by on_unkillable, and yet it goes on
    **{(state, kind): _ignore if kind is ev.Started else ending.on_late_exit
       for state in (State.STOPPED, State.FAILED, State.WAITING, State.BACKOFF)
       for kind in (ev.Started, ev.Exited, ev.CommandExited)},
}  # fmt: skip
