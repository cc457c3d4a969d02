# SPDX-License-Identifier: Apache-2.0
"""The state of every unit, as a state machine: events and times in, actions out. Pure.

The shell (`event_loop`) runs the actions in the order given and reports what happened as events. `TRANSITIONS` lists
every pair of state and event that can occur; any other is a bug of the shell and raises LocalProtocolError.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from enclavekit_core.errors import LocalProtocolError

from enclavekit_enclave_init.events import (
    Action,
    CancelTimer,
    Ending,
    Event,
    Exited,
    KillSession,
    Note,
    Outcome,
    PowerOff,
    SetTimer,
    Signal,
    Spawn,
    Started,
    TimerFired,
)
from enclavekit_enclave_init.ordering import StartPlan
from enclavekit_enclave_init.units import Unit

KILL_GRACE_S = 5.0  # SIGKILL works at once, unless the kernel itself is stuck: do not wait for that for ever


class State(enum.Enum):
    WAITING = "waiting"  # for the units before it
    STARTING = "starting"
    RUNNING = "running"
    BACKOFF = "restarting"  # ended, waits for RestartSec
    STOPPING = "stopping"  # StopSignal sent
    KILLING = "killing"  # SIGKILL sent
    DONE = "done"  # ended well, for good
    FAILED = "failed"  # ended badly or never started, for good
    STOPPED = "stopped"  # by us, or never started because everything stops


ACTIVE = frozenset({State.STARTING, State.RUNNING, State.STOPPING, State.KILLING})  # has a process


@dataclass(slots=True)
class _Record:
    unit: Unit
    state: State = State.WAITING
    starts: deque[float] = field(default_factory=deque)
    """When it was started, no older than its StartLimitIntervalSec; bounded by its StartLimitBurst."""
    ending: Ending | None = None
    stop_reason: str = ""
    """Why it is to stop; empty if it is not."""


class Supervisor:
    """Decides what to start, restart, stop and kill."""

    def __init__(self, units: Iterable[Unit], plan: StartPlan) -> None:
        self._plan = plan
        self._records = {unit.name: _Record(unit) for unit in units if unit.enabled}
        self._outcome: Outcome | None = None
        self._finished = False
        self._actions: list[Action] = []

    @property
    def states(self) -> dict[str, State]:
        """The state of every enabled unit."""
        return {name: record.state for name, record in self._records.items()}

    def start(self, now: float) -> list[Action]:
        """Begin: start what waits for nothing. `now` is in seconds of a monotonic clock, as everywhere here."""
        self._advance(now)
        return self._take_actions()

    def handle(self, event: Event, now: float) -> list[Action]:
        """Return what is to be done about `event`. Raises LocalProtocolError if it cannot occur in this state."""
        record = self._records[event.unit]
        transition = TRANSITIONS.get((record.state, type(event)))
        if transition is None:
            raise LocalProtocolError(f"cannot take {type(event).__name__} for {event.unit}: it is {record.state.value}")
        transition(self, record, event, now)
        self._advance(now)
        return self._take_actions()

    def stop_all(self, reason: str, now: float) -> list[Action]:
        """Stop everything in order, then power off. Only the first reason counts."""
        self._stop_all(Outcome(reason))
        self._advance(now)
        return self._take_actions()

    # transitions ----------------------------------------------------------------------------------------------

    def _on_started(self, record: _Record, event: Event, now: float) -> None:
        if not record.unit.oneshot:
            record.state = State.RUNNING

    def _on_ended(self, record: _Record, event: Event, now: float) -> None:
        assert isinstance(event, Exited)
        if record.stop_reason:
            # it was to stop as soon as those behind it had, and went by itself
            self._on_stopped(record, event, now)
            return
        unit, ending = record.unit, event.ending
        record.ending = ending
        again = {"always": True, "on-failure": not ending.succeeded, "on-success": ending.succeeded}
        if again.get(unit.restart, False):
            while record.starts and record.starts[0] <= now - unit.start_limit_interval_s:
                record.starts.popleft()
            if unit.start_limit_burst == 0 or len(record.starts) < unit.start_limit_burst:
                record.state = State.BACKOFF
                self._note(f"{unit.name} {ending}; it starts again in {unit.restart_delay_s:g} s")
                self._actions.append(SetTimer(unit.name, unit.restart_delay_s))
                return
            limit = f"{unit.start_limit_burst} starts in {unit.start_limit_interval_s:g} s"
            self._end_for_good(record, State.FAILED, f"{ending}; it is not started again after {limit}")
            return
        self._end_for_good(record, State.DONE if ending.succeeded else State.FAILED, str(ending))

    def _on_backoff_over(self, record: _Record, event: Event, now: float) -> None:
        record.state = State.WAITING

    def _on_stopped(self, record: _Record, event: Event, now: float) -> None:
        assert isinstance(event, Exited)
        record.ending = event.ending
        self._actions.append(CancelTimer(record.unit.name))
        self._end_stopped(record, str(event.ending))

    def _on_stop_timeout(self, record: _Record, event: Event, now: float) -> None:
        record.state = State.KILLING
        self._note(f"{record.unit.name} did not stop within {record.unit.stop_timeout_s:g} s: it is killed")
        self._actions += [KillSession(record.unit.name), SetTimer(record.unit.name, KILL_GRACE_S)]

    def _on_unkillable(self, record: _Record, event: Event, now: float) -> None:
        self._end_stopped(record, "does not die of SIGKILL: it is left behind")

    def _ignore(self, record: _Record, event: Event, now: float) -> None:
        """It comes too late to matter."""

    # consequences ---------------------------------------------------------------------------------------------

    def _end_stopped(self, record: _Record, how: str) -> None:
        if self._outcome is not None:
            record.state = State.STOPPED
            self._note(f"{record.unit.name} stopped: {how}")
        else:
            self._end_for_good(record, State.FAILED, record.stop_reason)

    def _end_for_good(self, record: _Record, state: State, why: str) -> None:
        record.state = state
        name = record.unit.name
        self._note(f"{name} {why}")
        if state is State.FAILED:
            for dependent, required in self._plan.requires.items():
                if name in required and not self._records[dependent].stop_reason:
                    self._lose_requirement(self._records[dependent], name)
        if record.unit.powers_off:
            ending = record.ending or Ending()
            self._stop_all(Outcome(f"{name} {why}", name, ending.exit_status, ending.signal))

    def _lose_requirement(self, dependent: _Record, name: str) -> None:
        reason = f"requires {name}, which has failed"
        if dependent.state in ACTIVE:
            dependent.stop_reason = reason
            # those behind it stop first, hence they must know now
            for further, required in self._plan.requires.items():
                record = self._records[further]
                if dependent.unit.name in required and not record.stop_reason:
                    self._lose_requirement(record, dependent.unit.name)
        elif dependent.state in (State.WAITING, State.BACKOFF):
            if dependent.state is State.BACKOFF:
                self._actions.append(CancelTimer(dependent.unit.name))
            self._end_for_good(dependent, State.FAILED, reason)

    def _stop_all(self, outcome: Outcome) -> None:
        if self._outcome is not None:
            return
        self._outcome = outcome
        self._note(f"everything stops: {outcome.reason}")
        for name, record in self._records.items():
            record.stop_reason = record.stop_reason or outcome.reason
            if record.state is State.BACKOFF:
                self._actions.append(CancelTimer(name))
            if record.state in (State.BACKOFF, State.WAITING):
                record.state = State.STOPPED

    def _advance(self, now: float) -> None:
        """Start and stop whatever the states now allow."""
        if self._outcome is None:
            for name in self._plan.order:
                record = self._records[name]
                if record.state is State.WAITING:
                    self._start_if_ready(record, now)
        # in reverse, a unit is asked to stop only when all that were started after it are gone
        for name in reversed(self._plan.order):
            record = self._records[name]
            if record.stop_reason and record.state in (State.STARTING, State.RUNNING) and not self._is_leaned_on(name):
                record.state = State.STOPPING
                self._actions += [Signal(name, record.unit.stop_signal), SetTimer(name, record.unit.stop_timeout_s)]
        at_rest = not any(record.state in ACTIVE for record in self._records.values())
        if self._outcome is not None and at_rest and not self._finished:
            self._finished = True
            self._actions.append(PowerOff(self._complete(self._outcome)))

    def _start_if_ready(self, record: _Record, now: float) -> None:
        name = record.unit.name
        for earlier in sorted(self._plan.requires[name]):
            state = self._records[earlier].state
            if state is State.FAILED:
                self._end_for_good(record, State.FAILED, f"requires {earlier}, which has failed")
                return
            if state not in (State.RUNNING, State.DONE):
                return
        if any(self._records[earlier].state in (State.WAITING, State.STARTING) for earlier in self._plan.after[name]):
            return
        record.state = State.STARTING
        record.starts.append(now)
        if len(record.starts) > max(record.unit.start_limit_burst, 1):
            record.starts.popleft()
        self._actions.append(Spawn(name))

    def _is_leaned_on(self, name: str) -> bool:
        return any(
            name in earlier and self._records[later].stop_reason and self._records[later].state in ACTIVE
            for later, earlier in self._plan.after.items()
        )

    def _complete(self, outcome: Outcome) -> Outcome:
        """Add how the unit with OnExit ended, if the outcome is not that end itself."""
        if outcome.unit is not None:
            return outcome
        for name in self._plan.order:
            record = self._records[name]
            if record.unit.powers_off and record.ending is not None:
                ending = record.ending
                return replace(outcome, unit=name, exit_status=ending.exit_status, signal=ending.signal)
        return outcome

    def _note(self, text: str) -> None:
        self._actions.append(Note(text))

    def _take_actions(self) -> list[Action]:
        actions, self._actions = self._actions, []
        return actions


TRANSITIONS = {
    (State.STARTING, Started): Supervisor._on_started,
    (State.STARTING, Exited): Supervisor._on_ended,
    (State.RUNNING, Exited): Supervisor._on_ended,
    (State.BACKOFF, TimerFired): Supervisor._on_backoff_over,
    (State.STOPPING, Started): Supervisor._ignore,
    (State.STOPPING, Exited): Supervisor._on_stopped,
    (State.STOPPING, TimerFired): Supervisor._on_stop_timeout,
    (State.KILLING, Started): Supervisor._ignore,
    (State.KILLING, Exited): Supervisor._on_stopped,
    (State.KILLING, TimerFired): Supervisor._on_unkillable,
    # left behind by _on_unkillable, and yet it ended
    (State.STOPPED, Exited): Supervisor._ignore,
    (State.FAILED, Exited): Supervisor._ignore,
}
