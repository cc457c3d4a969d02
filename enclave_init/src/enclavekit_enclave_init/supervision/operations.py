# SPDX-License-Identifier: Apache-2.0
"""What may be asked of the supervisor while the enclave runs. Pure.

Each operation checks first, raises InputError("cannot <verb> <unit>: <cause>") and then has changed nothing; else it
returns the actions that begin it. What comes of it is seen in the `Changed` actions and in `Supervisor.snapshot`: an
operation returns at once, stopping takes as long as the unit takes.

`EventLoop.control` carries these out; whoever listens for requests (a socket that is registered with the loop) calls

    start(name)          with what it requires; units that conflict with it are stopped first
    stop(name)           those that require it stop before it; it is not restarted
    restart(name)        those that require it stop too, and start again after it
    reload(name)         ExecReload
    enable(name), disable(name)
                         the caller has changed the file; enabling does not start, disabling stops
    kill(name, signal)   any signal, to the main process or to its whole group; Restart decides what follows
    replace_units(units) new definitions; running units go on running. Returns (actions, UnitChanges)
    shutdown(kind)       "poweroff" or "reboot"
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace

from enclavekit_core.errors import ConfigError, InputError

from enclavekit_enclave_init.supervision.events import Action, Signal
from enclavekit_enclave_init.supervision.state import ACTIVE, Record, State, Stop, Why
from enclavekit_enclave_init.supervision.supervisor import Supervisor
from enclavekit_enclave_init.units.ordering import StartPlan, plan_start
from enclavekit_enclave_init.units.unit import Unit

SIGNALS = range(1, 65)  # Linux; 0 would only ask
KINDS = ("poweroff", "reboot")


@dataclass(frozen=True, slots=True)
class UnitChanges:
    """What a reload of the unit files has changed, by name."""

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    """Those that run go when they have ended."""
    changed: tuple[str, ...] = ()
    needs_restart: tuple[str, ...] = ()
    """Of the changed ones those that run: as before, until they are restarted."""
    notes: tuple[str, ...] = ()
    """What the files ask for that is left out of account."""


class Operations:
    """Requests to one supervisor. `now` is the supervisor's time."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor

    def start(self, name: str, now: float) -> list[Action]:
        record = self._find("start", name)
        self._check_alive("start", name)
        if record.removed:
            raise InputError("start", name, "its file has gone")
        if record.stop is not None and record.state in ACTIVE:
            if record.stop.why not in (Why.REQUEST, Why.AGAIN):
                raise InputError("start", name, f"it stops: {record.stop.reason}")
            record.stop = Stop(Why.AGAIN, "a start was asked for")
        self._bring_up("start", name)
        return self._supervisor.settle(now)

    def stop(self, name: str, now: float) -> list[Action]:
        record = self._find("stop", name)
        self._check_alive("stop", name)
        self._stop(record, Stop(Why.REQUEST, "a stop was asked for"))
        return self._supervisor.settle(now)

    def restart(self, name: str, now: float) -> list[Action]:
        record = self._find("restart", name)
        self._check_alive("restart", name)
        if record.state not in ACTIVE:
            return self.start(name, now)
        if record.removed:
            raise InputError("restart", name, "its file has gone")
        if record.stop is not None and record.stop.why not in (Why.REQUEST, Why.AGAIN, Why.FAULT):
            raise InputError("restart", name, f"it stops: {record.stop.reason}")
        if record.stop is not None and record.stop.why is Why.REQUEST:
            record.stop = Stop(Why.AGAIN, "a restart was asked for")
        self._bring_up("restart", name)  # what it requires may be about to stop
        self._restart(record, "a restart was asked for")
        return self._supervisor.settle(now)

    def reload(self, name: str, now: float) -> list[Action]:
        record = self._find("reload", name)
        self._check_alive("reload", name)
        if not record.unit.reload_commands:
            raise InputError("reload", name, "it has no ExecReload")
        if record.state is not State.RUNNING or record.stop is not None:
            raise InputError("reload", name, f"it is {record.state.value}")
        if record.queue:
            raise InputError("reload", name, "it reloads already")
        self._supervisor.begin_reload(record)
        return self._supervisor.settle(now)

    def enable(self, name: str, now: float) -> list[Action]:
        record = self._find("enable", name)
        if record.removed:
            raise InputError("enable", name, "its file has gone")
        self.check_enable(name)
        record.unit = replace(record.unit, enabled=True)
        return self._supervisor.settle(now)

    def check_enable(self, name: str) -> None:
        """Raise InputError if the unit could not be started with the others: asked before its file is changed."""
        record = self._find("enable", name)
        units = self._units({name: replace(record.unit, enabled=True)})
        try:
            plan_start(units)
        except ConfigError as exc:
            raise InputError("enable", name, exc.reason) from exc

    def check_disable(self, name: str) -> None:
        """Raise InputError if another unit needs it: asked before its file is changed."""
        self._find("disable", name)
        needing = sorted(
            record.unit.name
            for record in self._supervisor.dependents_of(name)
            if record.unit.enabled and not record.removed
        )
        if needing:
            raise InputError("disable", name, f"{', '.join(needing)} requires it")

    def disable(self, name: str, now: float) -> list[Action]:
        self.check_disable(name)
        record = self._find("disable", name)
        record.unit = replace(record.unit, enabled=False)
        self._stop(record, Stop(Why.REQUEST, "it was disabled"))
        return self._supervisor.settle(now)

    def kill(self, name: str, number: int, now: float, *, main_only: bool = False) -> list[Action]:
        record = self._find("kill", name)
        if number not in SIGNALS:
            raise InputError("kill", name, f"there is no signal {number}")
        if record.state not in ACTIVE:
            raise InputError("kill", name, f"it is {record.state.value}")
        return [Signal(name, number, main_only=main_only), *self._supervisor.settle(now)]

    def shutdown(self, kind: str, now: float) -> list[Action]:
        if kind not in KINDS:
            raise InputError("shut down", "the enclave", f"{kind!r} is neither of {', '.join(KINDS)}")
        return self._supervisor.stop_all(f"{kind} was asked for", now, kind)

    def replace_units(self, units: Iterable[Unit], now: float) -> tuple[list[Action], UnitChanges]:
        """Take new definitions. Raises ConfigError for what cannot be ordered; then nothing has changed.

        Units that run go on with the process they have. New ones that are enabled start. Those that were stopped,
        failed or are done stay so.
        """
        supervisor = self._supervisor
        new = {unit.name: unit for unit in units}
        old = supervisor.records
        running_plan = {name for name in supervisor.plan.after if name in new}
        plan = plan_start(new.values(), running_plan)
        added = tuple(sorted(new.keys() - old.keys()))
        removed = tuple(sorted(name for name in old.keys() - new.keys() if not old[name].removed))
        changed = tuple(sorted(name for name in new.keys() & old.keys() if _differs(new[name], old[name].unit)))
        supervisor.plan = plan
        for name in added:
            record = Record(new[name], since_s=now)
            if not new[name].enabled:
                record.state, record.reason = State.STOPPED, "disabled"
            old[name] = record
        for name in new.keys() & old.keys():
            record = old[name]
            record.removed = False
            if name in changed:
                record.changed = record.state in ACTIVE
            record.unit = new[name]
        for name in removed:
            record = old[name]
            record.removed = True
            if record.state not in ACTIVE:
                supervisor.cancel_start(record, "its file has gone")
                supervisor.forget_if_removed(record)
        needs = tuple(name for name in changed if old[name].changed)
        return supervisor.settle(now), UnitChanges(added, removed, changed, needs, plan.notes)

    # shared ---------------------------------------------------------------------------------------------------

    def _find(self, verb: str, name: str) -> Record:
        record = self._supervisor.records.get(name)
        if record is None:
            raise InputError(verb, name, "there is no such unit")
        return record

    def _check_alive(self, verb: str, name: str) -> None:
        if self._supervisor.is_ending:
            raise InputError(verb, name, "everything stops")

    def _units(self, instead: dict[str, Unit]) -> list[Unit]:
        records = self._supervisor.records.values()
        return [instead.get(record.unit.name, record.unit) for record in records if not record.removed]

    def _plan(self, names: set[str]) -> StartPlan:
        return plan_start(self._units({}), names)

    def _needed_by(self, name: str) -> list[str]:
        """Return the unit, all that it requires, and the enabled ones that it wants."""
        records = self._supervisor.records
        needed, queue = list[str](), [name]
        while queue:
            current = queue.pop()
            if current in needed or current not in records:
                continue
            needed.append(current)
            unit = records[current].unit
            queue += [*unit.requires, *unit.binds_to]
            queue += [other for other in unit.wants if other in records and records[other].unit.enabled]
            queue += [other for other, record in records.items() if current in record.unit.required_by]
        return needed

    def _bring_up(self, verb: str, name: str) -> None:
        """Have the unit and what it requires start; what is up stays so."""
        supervisor = self._supervisor
        wanted = self._needed_by(name)
        try:
            supervisor.plan = self._plan({*supervisor.plan.after, *wanted})
        except ConfigError as exc:
            raise InputError(verb, name, exc.reason) from exc
        for other in wanted:
            self._queue(supervisor.records[other])
            for rival in supervisor.plan.conflicts[other]:
                if rival not in wanted:
                    self._stop(supervisor.records[rival], Stop(Why.REQUEST, f"conflicts with {other}"))

    def _queue(self, record: Record) -> None:
        """Have a unit start that is not up or about to be."""
        settled = record.state in (State.DONE, State.FAILED, State.STOPPED)
        if settled and not (record.state is State.DONE and record.unit.oneshot):
            record.starts.clear()
            record.streak = 0
            record.stop = None
            self._supervisor.queue_start(record)
        elif record.state is State.BACKOFF:
            self._supervisor.queue_start(record)
        elif record.state in ACTIVE and record.stop is not None and record.stop.why is Why.REQUEST:
            record.stop = Stop(Why.AGAIN, "a start was asked for")

    def _stop(self, record: Record, stop: Stop) -> None:
        """Stop it and, before it, what requires it."""
        if record.state in ACTIVE:
            if record.stop is not None and record.stop.why in (Why.AGAIN, Why.FAULT):
                record.stop = stop  # it was to come again
            self._supervisor.request_stop(record, stop)
        elif record.state in (State.WAITING, State.BACKOFF, State.DONE):
            self._supervisor.cancel_start(record, stop.reason)
        else:
            return
        for dependent in self._supervisor.dependents_of(record.unit.name):
            if dependent.state not in (State.FAILED, State.STOPPED, State.DONE):
                self._stop(dependent, Stop(stop.why, f"requires {record.unit.name}, which stops"))

    def _restart(self, record: Record, reason: str) -> None:
        if record.state in ACTIVE:
            self._supervisor.request_stop(record, Stop(Why.AGAIN, reason))
            for dependent in self._supervisor.dependents_of(record.unit.name):
                self._restart(dependent, f"requires {record.unit.name}, which restarts")


def _differs(new: Unit, old: Unit) -> bool:
    return any(getattr(new, item.name) != getattr(old, item.name) for item in fields(Unit))
