# SPDX-License-Identifier: Apache-2.0
"""The state of every unit, as a state machine: events and times in, actions out. Pure.

The shell (`event_loop`) runs the actions in the order given and reports what happened as events. `TRANSITIONS` lists
every pair of state and event that can occur; any other is a bug of the shell and raises LocalProtocolError. What
people may ask for while it runs is in `operations`. Longer than most modules here: it is one table and what it names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from enclavekit_core.errors import LocalProtocolError

from enclavekit_enclave_init import events as ev
from enclavekit_enclave_init.events import Action, Ending, Event, Outcome, Slot, Timer
from enclavekit_enclave_init.ordering import StartPlan
from enclavekit_enclave_init.unit_state import ACTIVE, COMING, HALTING, Record, State, Stop, UnitStatus, Why, describe
from enclavekit_enclave_init.unit_values import Command
from enclavekit_enclave_init.units import Unit

KILL_GRACE_S = 5.0  # SIGKILL works at once, unless the kernel itself is stuck: do not wait for that for ever
START_TIMEOUT_S = 90.0  # as systemd has it
SIGABRT = 6  # what a watchdog sends, so that the process can leave a core or a trace
MAX_STATUS_CHARS = 200  # it is shown on one line


class Supervisor:
    """Decides what to start, restart, stop and kill."""

    def __init__(self, units: Iterable[Unit], plan: StartPlan) -> None:
        self.plan = plan
        self.records = {unit.name: Record(unit) for unit in units}
        for name, record in self.records.items():
            if name not in plan.after:
                record.state, record.reason = State.STOPPED, "disabled"
        self._outcome: Outcome | None = None
        self._finished = False
        self._actions: list[Action] = []
        self._now = 0.0

    @property
    def states(self) -> dict[str, State]:
        """The state of every unit."""
        return {name: record.state for name, record in self.records.items()}

    @property
    def is_ending(self) -> bool:
        """Everything stops, or has."""
        return self._outcome is not None

    def is_up(self, name: str) -> bool:
        """Say whether those that require the unit may start: it runs, or was a oneshot and has ended well."""
        return self.records[name].state in (State.RUNNING, State.DONE)

    def start(self, now: float) -> list[Action]:
        """Begin: start what waits for nothing. `now` is in seconds of a monotonic clock, as everywhere here."""
        self._now = now
        return self.settle(now)

    def handle(self, event: Event, now: float) -> list[Action]:
        """Return what is to be done about `event`. Raises LocalProtocolError if it cannot occur in this state."""
        self._now = now
        record = self.records.get(event.unit)
        if record is None:  # its file has gone, and so has it
            return self.settle(now)
        if isinstance(event, ev.TimerFired):
            record.armed.discard(event.timer)
        if isinstance(event, ev.Notified):
            self._on_notified(record, event)
        elif isinstance(event, ev.TimerFired) and event.timer is not Timer.STATE:
            self._on_duty_timer(record, event.timer)
        elif isinstance(event, ev.CommandExited) and event.slot is Slot.HEALTH:
            self._on_health(record, event.ending)
        else:
            transition = TRANSITIONS.get((record.state, type(event)))
            if transition is None:
                kind = type(event).__name__
                raise LocalProtocolError(f"cannot take {kind} for {event.unit}: it is {record.state.value}")
            transition(self, record, event)
        return self.settle(now)

    def stop_all(self, reason: str, now: float, kind: str = "poweroff") -> list[Action]:
        """Stop everything in order, then power off or reboot. Only the first reason counts."""
        self._now = now
        self._stop_all(Outcome(reason, kind=kind))
        return self.settle(now)

    def snapshot(self, now: float) -> list[UnitStatus]:
        """Return every unit as plain data, by name; what only the shell knows (pid, cgroup) is None."""
        return [describe(self.records[name], now) for name in sorted(self.records)]

    # starting -------------------------------------------------------------------------------------------------

    def _begin_start(self, record: Record) -> None:
        unit = record.unit
        record.starts.append(self._now - record.waited_s)
        if len(record.starts) > max(unit.start_limit_burst, 1):
            record.starts.popleft()
        record.changed, record.status = False, ""
        timeout = unit.start_timeout_s
        if timeout is None:
            timeout = 0.0 if unit.oneshot else START_TIMEOUT_S
        # a simple unit without commands is up as soon as it is executed: nothing to time
        if timeout and (unit.oneshot or unit.notify or unit.start_pre or unit.start_post):
            self._set_timer(record, timeout)
        if unit.start_pre:
            self._enter(record, State.PREPARING)
            self._run_commands(record, unit.start_pre)
        else:
            self._spawn_main(record)

    def _spawn_main(self, record: Record) -> None:
        self._enter(record, State.STARTING)
        record.has_main = True
        self._actions.append(ev.Spawn(record.unit.name))

    def _on_prepared(self, record: Record, event: Event) -> None:
        if failed := self._next_command(record, event, record.unit.start_pre, "ExecStartPre"):
            self._on_failed_start(record, failed)
        elif not record.queue:
            self._spawn_main(record)

    def _on_started(self, record: Record, event: Event) -> None:
        if not record.unit.oneshot and not record.unit.notify:
            self._on_ready(record)

    def _on_ready(self, record: Record) -> None:
        if record.unit.start_post:
            self._enter(record, State.COMPLETING)
            self._run_commands(record, record.unit.start_post)
        else:
            self._on_up(record)

    def _on_completed(self, record: Record, event: Event) -> None:
        if failed := self._next_command(record, event, record.unit.start_post, "ExecStartPost"):
            if record.has_main:
                self.request_stop(record, Stop(Why.FAULT, str(failed)))
            else:
                self._on_failed_start(record, failed)
        elif not record.queue:
            self._on_up(record)

    def _on_failed_start(self, record: Record, ending: Ending) -> None:
        record.ending = ending
        self._cancel_timer(record)
        if record.stop is not None:
            self._end_stopped(record, str(ending))
        else:
            self._after_end(record, ending)

    def _on_up(self, record: Record) -> None:
        self._cancel_timer(record)
        if not record.has_main:  # a oneshot
            self._end_for_good(record, State.DONE, str(record.ending))
            return
        self._enter(record, State.RUNNING)
        record.health_failures = 0
        if record.unit.watchdog_s:
            self._set_timer(record, record.unit.watchdog_s, Timer.WATCHDOG)
        if record.unit.health_check:
            self._set_timer(record, record.unit.health_interval_s, Timer.HEALTH)

    def _on_start_timeout(self, record: Record, event: Event) -> None:
        self.request_stop(record, Stop(Why.FAULT, "it was not up in time"))

    # running --------------------------------------------------------------------------------------------------

    def _on_notified(self, record: Record, event: ev.Notified) -> None:
        if status := event.variables.get("STATUS"):
            record.status = status[:MAX_STATUS_CHARS]
        if record.unit.notify and record.state is State.STARTING and event.variables.get("READY") == "1":
            self._on_ready(record)
        if record.unit.watchdog_s and record.state is State.RUNNING and event.variables.get("WATCHDOG") == "1":
            self._set_timer(record, record.unit.watchdog_s, Timer.WATCHDOG)

    def _on_duty_timer(self, record: Record, timer: Timer) -> None:
        if record.state is not State.RUNNING:
            raise LocalProtocolError(f"cannot take the {timer.value} timer for {record.unit.name}")
        name, check = record.unit.name, record.unit.health_check
        if timer is Timer.WATCHDOG:
            why = f"it has not fed its watchdog for {record.unit.watchdog_s:g} s"
            self.request_stop(record, Stop(Why.FAULT, why))
        elif record.checking:
            self._actions.append(ev.DropCommand(name, Slot.HEALTH))
            self._on_health(record, Ending(failure="it took too long"))
        elif check is not None:
            record.checking = True
            self._actions.append(ev.SpawnCommand(name, Slot.HEALTH, check.argv))
            self._set_timer(record, record.unit.health_timeout_s, Timer.HEALTH)

    def _on_health(self, record: Record, ending: Ending) -> None:
        record.checking = False
        if record.state is not State.RUNNING:
            raise LocalProtocolError(f"cannot take a health check of {record.unit.name}")
        record.health_failures = 0 if ending.succeeded else record.health_failures + 1
        if not ending.succeeded:
            self._note(f"{record.unit.name}: health check {ending}")
        if record.health_failures >= record.unit.health_retries and not ending.succeeded:
            why = f"its health check has failed {record.health_failures} times"
            self.request_stop(record, Stop(Why.FAULT, why))
            return
        self._set_timer(record, record.unit.health_interval_s, Timer.HEALTH)

    def begin_reload(self, record: Record) -> None:
        """Run ExecReload; the state stays."""
        self._run_commands(record, record.unit.reload_commands)

    def _on_reloaded(self, record: Record, event: Event) -> None:
        if failed := self._next_command(record, event, record.unit.reload_commands, "ExecReload"):
            record.queue.clear()
            self._note(f"{record.unit.name}: {failed}")
        elif not record.queue:
            self._note(f"{record.unit.name} has reloaded")

    # ending ---------------------------------------------------------------------------------------------------

    def _on_ended(self, record: Record, event: Event) -> None:
        assert isinstance(event, ev.Exited)
        record.has_main = False
        record.ending = event.ending
        was_starting = record.state is State.STARTING
        if record.queue:
            self._drop_command(record)
        self._off_duty(record)
        unit, ending = record.unit, event.ending
        if record.stop is None and was_starting and ending.failure == "" and self._is_success(unit, ending):
            if unit.oneshot:
                self._on_ready(record)
                return
            if unit.notify:
                record.ending = ending = _blame(ending, f"it {ending} before it was ready")
        self._cancel_timer(record)
        if record.stop is not None:
            # it was to stop as soon as those behind it had, and went by itself
            self._end_stopped(record, str(ending))
        else:
            self._after_end(record, ending)

    def _is_success(self, unit: Unit, ending: Ending) -> bool:
        if ending.failure:
            return False
        return ending.succeeded or ending.exit_status in unit.success_statuses or ending.signal in unit.success_signals

    def _after_end(self, record: Record, ending: Ending) -> None:
        """Restart it or be done with it, as Restart has it."""
        unit = record.unit
        succeeded = self._is_success(unit, ending)
        again = {"always": True, "on-failure": not succeeded, "on-success": succeeded}
        if not again.get(unit.restart, False) or self.is_ending:
            self._end_for_good(record, State.DONE if succeeded else State.FAILED, str(ending))
            return
        active = self._now - record.waited_s
        while record.starts and record.starts[0] <= active - unit.start_limit_interval_s:
            record.starts.popleft()
        if unit.start_limit_burst and len(record.starts) >= unit.start_limit_burst:
            limit = f"{unit.start_limit_burst} starts in {unit.start_limit_interval_s:g} s"
            self._end_for_good(record, State.FAILED, f"{ending}; it is not started again after {limit}")
            return
        if not record.starts:
            record.streak = 0
        longest = max(unit.restart_delay_s, unit.restart_max_delay_s)
        delay = min(unit.restart_delay_s * 2 ** min(record.streak, 30), longest)
        record.waited_s += delay - unit.restart_delay_s
        record.streak += 1
        record.restarts += 1
        self._enter(record, State.BACKOFF, str(ending))
        self._note(f"{unit.name} {ending}; it starts again in {delay:g} s")
        self._set_timer(record, delay)
        self._release_bound(unit.name, Stop(Why.AGAIN, f"is bound to {unit.name}, which restarts"))

    def _on_backoff_over(self, record: Record, event: Event) -> None:
        self._enter(record, State.WAITING)

    def request_stop(self, record: Record, stop: Stop) -> None:
        """Have an active unit stop, once those that lean on it have. The first reason holds, except against the end."""
        if record.stop is None or (stop.why is Why.END and record.stop.why is not Why.END):
            record.stop = stop
        if stop.why is Why.FAULT and record.state not in HALTING:
            # it does not wait for those behind it: it does no work for them any more
            self._begin_stop(record)

    def _begin_stop(self, record: Record) -> None:
        unit, state = record.unit, record.state
        if record.queue and (record.has_main or state is not State.PREPARING):
            self._drop_command(record)
        self._off_duty(record)
        if not record.has_main and not record.queue:  # a oneshot whose ExecStartPost was cut off
            self._cancel_timer(record)
            self._end_stopped(record, str(record.ending))
        elif unit.stop_commands and state is State.RUNNING and not self._is_watchdog(record):
            self._enter(record, State.ENDING)
            self._set_timer(record, unit.stop_timeout_s)
            self._run_commands(record, unit.stop_commands)
        else:
            self._send_stop_signal(record)

    def _is_watchdog(self, record: Record) -> bool:
        return record.stop is not None and record.stop.why is Why.FAULT and "watchdog" in record.stop.reason

    def _send_stop_signal(self, record: Record) -> None:
        unit = record.unit
        self._enter(record, State.STOPPING)
        number = SIGABRT if self._is_watchdog(record) else unit.stop_signal
        self._actions.append(ev.Signal(unit.name, number, main_only=unit.kill_mode != "control-group"))
        self._set_timer(record, unit.stop_timeout_s)

    def _on_stop_command_done(self, record: Record, event: Event) -> None:
        if failed := self._next_command(record, event, record.unit.stop_commands, "ExecStop"):
            record.queue.clear()
            self._note(f"{record.unit.name}: {failed}")
        if record.queue:
            return
        if record.has_main:
            self._send_stop_signal(record)
        else:
            self._cancel_timer(record)
            self._end_stopped(record, str(record.ending))

    def _on_main_exit_while_ending(self, record: Record, event: Event) -> None:
        assert isinstance(event, ev.Exited)
        record.has_main, record.ending = False, event.ending

    def _on_stop_command_timeout(self, record: Record, event: Event) -> None:
        self._note(f"{record.unit.name}: ExecStop took longer than {record.unit.stop_timeout_s:g} s")
        self._drop_command(record)
        if record.has_main:
            self._send_stop_signal(record)
        else:
            self._end_stopped(record, str(record.ending))

    def _on_stopped(self, record: Record, event: Event) -> None:
        assert isinstance(event, ev.Exited | ev.CommandExited)
        if isinstance(event, ev.Exited):
            record.has_main = False
        record.queue.clear()
        record.ending = event.ending
        self._cancel_timer(record)
        self._end_stopped(record, str(event.ending))

    def _on_stop_timeout(self, record: Record, event: Event) -> None:
        self._enter(record, State.KILLING)
        self._note(f"{record.unit.name} did not stop within {record.unit.stop_timeout_s:g} s: it is killed")
        self._actions.append(ev.KillSession(record.unit.name))
        self._set_timer(record, KILL_GRACE_S)

    def _on_unkillable(self, record: Record, event: Event) -> None:
        record.left_behind = True
        if not self.is_ending:
            record.stop = Stop(Why.LOST, "it does not die of SIGKILL: it is left behind")
        self._end_stopped(record, "does not die of SIGKILL: it is left behind")

    def _on_late_exit(self, record: Record, event: Event) -> None:
        """It was left behind by _on_unkillable, and yet it ended."""
        record.has_main = record.left_behind = False
        record.queue.clear()

    def _ignore(self, record: Record, event: Event) -> None:
        """It comes too late to matter."""

    # consequences ---------------------------------------------------------------------------------------------

    def _end_stopped(self, record: Record, how: str) -> None:
        stop = record.stop
        assert stop is not None
        name = record.unit.name
        if self.is_ending:
            self._enter(record, State.STOPPED, stop.reason)
            self._note(f"{name} stopped: {how}")
            return
        record.stop = None
        match stop.why:
            case Why.LOST:
                self._end_for_good(record, State.FAILED, stop.reason)
            case Why.FAULT:
                record.ending = _blame(record.ending or Ending(), stop.reason)
                self._after_end(record, record.ending)
            case Why.AGAIN:
                self._note(f"{name} stopped: {how}; it starts again")
                self._enter(record, State.WAITING, stop.reason)
            case _:
                self._note(f"{name} stopped: {how}")
                self._enter(record, State.STOPPED, stop.reason)
                self._release_bound(name, Stop(Why.REQUEST, f"is bound to {name}, which was stopped"))
                self.forget_if_removed(record)

    def _end_for_good(self, record: Record, state: State, why: str) -> None:
        self._enter(record, state, why)
        name = record.unit.name
        self._note(f"{name} {why}")
        if state is State.FAILED:
            for dependent in self.dependents_of(name):
                self._lose_requirement(dependent, name)
        elif not record.unit.oneshot:
            self._release_bound(name, Stop(Why.REQUEST, f"is bound to {name}, which has ended"))
        if record.unit.powers_off:
            ending = record.ending or Ending()
            self._stop_all(Outcome(f"{name} {why}", name, ending.exit_status, ending.signal, ending.out_of_memory))
        self.forget_if_removed(record)

    def forget_if_removed(self, record: Record) -> None:
        """Drop a unit that has no process and no file any more."""
        if record.removed and record.state not in ACTIVE and not record.left_behind:
            self.records.pop(record.unit.name, None)

    def dependents_of(self, name: str) -> list[Record]:
        """Return those that require the unit."""
        return [
            self.records[dependent]
            for dependent, required in self.plan.requires.items()
            if name in required and dependent in self.records
        ]

    def _lose_requirement(self, dependent: Record, name: str) -> None:
        reason = f"requires {name}, which has failed"
        if dependent.stop is not None:
            if dependent.stop.why is Why.AGAIN:
                dependent.stop = Stop(Why.LOST, reason)
        elif dependent.state in ACTIVE:
            self.request_stop(dependent, Stop(Why.LOST, reason))
            # those behind it stop first, hence they must know now
            for further in self.dependents_of(dependent.unit.name):
                self._lose_requirement(further, dependent.unit.name)
        elif dependent.state in (State.WAITING, State.BACKOFF):
            self._cancel_timer(dependent)
            self._end_for_good(dependent, State.FAILED, reason)

    def _release_bound(self, name: str, stop: Stop) -> None:
        for bound, to in self.plan.binds_to.items():
            record = self.records.get(bound)
            if name not in to or record is None:
                continue
            if record.state in ACTIVE:
                for further in self.dependents_of(bound):
                    if further.state in ACTIVE and further.stop is None:
                        self.request_stop(further, Stop(stop.why, f"requires {bound}"))
                self.request_stop(record, stop)
            elif record.state in (State.WAITING, State.BACKOFF) and stop.why is not Why.AGAIN:
                self.cancel_start(record, stop.reason)

    def queue_start(self, record: Record) -> None:
        """Have a unit without a process start as soon as it may."""
        self._cancel_timer(record)
        self._enter(record, State.WAITING)

    def cancel_start(self, record: Record, reason: str) -> None:
        """Have a unit without a process not start."""
        self._cancel_timer(record)
        self._enter(record, State.STOPPED, reason)

    def _stop_all(self, outcome: Outcome) -> None:
        if self._outcome is not None:
            return
        self._outcome = outcome
        self._note(f"everything stops: {outcome.reason}")
        for record in self.records.values():
            if record.state in ACTIVE:
                self.request_stop(record, Stop(Why.END, outcome.reason))
            elif record.state in (State.BACKOFF, State.WAITING):
                self.cancel_start(record, outcome.reason)

    def settle(self, now: float) -> list[Action]:
        """Start and stop whatever the states now allow; return all that is to be done."""
        self._now = now
        if self._outcome is None:
            for name in self.plan.order:
                record = self.records.get(name)
                if record is not None and record.state is State.WAITING:
                    self._start_if_ready(record)
        # in reverse, a unit is asked to stop only when all that were started after it are gone
        for name in (*self._outside_plan(), *reversed(self.plan.order)):
            record = self.records.get(name)
            halts = record is not None and record.stop is not None and record.state in ACTIVE - HALTING
            if record is not None and halts and not self._is_leaned_on(name):
                self._begin_stop(record)
        at_rest = not any(record.state in ACTIVE for record in self.records.values())
        if self._outcome is not None and at_rest and not self._finished:
            self._finished = True
            self._actions.append(ev.PowerOff(self._complete(self._outcome)))
        actions, self._actions = self._actions, []
        return actions

    def _outside_plan(self) -> list[str]:
        return [name for name, record in self.records.items() if record.removed and name not in self.plan.after]

    def _start_if_ready(self, record: Record) -> None:
        name = record.unit.name
        if record.left_behind:
            return
        for earlier in sorted(self.plan.requires[name]):
            if self.records[earlier].state is State.FAILED:
                self._end_for_good(record, State.FAILED, f"requires {earlier}, which has failed")
                return
            if not self.is_up(earlier) or self.records[earlier].stop is not None:
                return
        if any(self.records[earlier].state in COMING for earlier in self.plan.after[name]):
            return
        if any(self.records[other].state in ACTIVE | {State.BACKOFF} for other in self.plan.conflicts[name]):
            return
        self._begin_start(record)

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
                ending = record.ending
                return replace(
                    outcome,
                    unit=name,
                    exit_status=ending.exit_status,
                    signal=ending.signal,
                    out_of_memory=ending.out_of_memory,
                )
        return outcome

    # small change ---------------------------------------------------------------------------------------------

    def _enter(self, record: Record, state: State, reason: str = "") -> None:
        record.state, record.since_s, record.reason = state, self._now, reason
        self._actions.append(ev.Changed(record.unit.name, state.value))

    def _run_commands(self, record: Record, commands: tuple[Command, ...]) -> None:
        record.queue = list(range(len(commands)))
        self._actions.append(ev.SpawnCommand(record.unit.name, Slot.COMMAND, commands[0].argv))

    def _next_command(self, record: Record, event: Event, commands: tuple[Command, ...], kind: str) -> Ending | None:
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
            following = commands[record.queue[0]].argv
            self._actions.append(ev.SpawnCommand(record.unit.name, Slot.COMMAND, following))
        return None

    def _drop_command(self, record: Record) -> None:
        record.queue.clear()
        self._actions.append(ev.DropCommand(record.unit.name, Slot.COMMAND))

    def _off_duty(self, record: Record) -> None:
        """End what only a running unit has: watchdog and health checks."""
        if record.state is not State.RUNNING:
            return
        name = record.unit.name
        self._cancel_timer(record, Timer.WATCHDOG)
        self._cancel_timer(record, Timer.HEALTH)
        if record.checking:
            record.checking = False
            self._actions.append(ev.DropCommand(name, Slot.HEALTH))

    def _set_timer(self, record: Record, delay_s: float, timer: Timer = Timer.STATE) -> None:
        record.armed.add(timer)
        self._actions.append(ev.SetTimer(record.unit.name, delay_s, timer))

    def _cancel_timer(self, record: Record, timer: Timer = Timer.STATE) -> None:
        if timer in record.armed:
            record.armed.discard(timer)
            self._actions.append(ev.CancelTimer(record.unit.name, timer))

    def _note(self, text: str) -> None:
        self._actions.append(ev.Note(text))


def _blame(ending: Ending, failure: str) -> Ending:
    """Return a bad end, whatever the status was."""
    return replace(ending, exit_status=ending.exit_status or None, failure=failure)


TRANSITIONS: dict[tuple[State, type], Callable[[Supervisor, Record, Event], None]] = {
    (State.PREPARING, ev.CommandExited): Supervisor._on_prepared,
    (State.PREPARING, ev.TimerFired): Supervisor._on_start_timeout,
    (State.STARTING, ev.Started): Supervisor._on_started,
    (State.STARTING, ev.Exited): Supervisor._on_ended,
    (State.STARTING, ev.TimerFired): Supervisor._on_start_timeout,
    # a oneshot or notify unit may be executed before, and end before, its start is complete
    (State.COMPLETING, ev.Started): Supervisor._ignore,
    (State.COMPLETING, ev.Exited): Supervisor._on_ended,
    (State.COMPLETING, ev.CommandExited): Supervisor._on_completed,
    (State.COMPLETING, ev.TimerFired): Supervisor._on_start_timeout,
    (State.RUNNING, ev.Started): Supervisor._ignore,
    (State.RUNNING, ev.Exited): Supervisor._on_ended,
    (State.RUNNING, ev.CommandExited): Supervisor._on_reloaded,
    (State.BACKOFF, ev.TimerFired): Supervisor._on_backoff_over,
    (State.ENDING, ev.Started): Supervisor._ignore,
    (State.ENDING, ev.CommandExited): Supervisor._on_stop_command_done,
    (State.ENDING, ev.Exited): Supervisor._on_main_exit_while_ending,
    (State.ENDING, ev.TimerFired): Supervisor._on_stop_command_timeout,
    (State.STOPPING, ev.Started): Supervisor._ignore,
    (State.STOPPING, ev.Exited): Supervisor._on_stopped,
    (State.STOPPING, ev.CommandExited): Supervisor._on_stopped,
    (State.STOPPING, ev.TimerFired): Supervisor._on_stop_timeout,
    (State.KILLING, ev.Started): Supervisor._ignore,
    (State.KILLING, ev.Exited): Supervisor._on_stopped,
    (State.KILLING, ev.CommandExited): Supervisor._on_stopped,
    (State.KILLING, ev.TimerFired): Supervisor._on_unkillable,
    # left behind by _on_unkillable, and yet it goes on
    **{(state, kind): Supervisor._ignore if kind is ev.Started else Supervisor._on_late_exit
       for state in (State.STOPPED, State.FAILED, State.WAITING, State.BACKOFF)
       for kind in (ev.Started, ev.Exited, ev.CommandExited)},
}  # fmt: skip
