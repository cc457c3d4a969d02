# SPDX-License-Identifier: Apache-2.0
"""The one loop of PID 1: runs what the supervisor decides and tells it what happens."""

from __future__ import annotations

import os
import signal
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace

from enclavekit_core.errors import EnclavekitError, describe_cause

from enclavekit_enclave_init.logs.console import Console
from enclavekit_enclave_init.logs.hub import LogHub
from enclavekit_enclave_init.logs.journal import Journal
from enclavekit_enclave_init.runtime.cgroups import Cgroups
from enclavekit_enclave_init.runtime.children import Children, Process, Role
from enclavekit_enclave_init.runtime.launcher import Launcher
from enclavekit_enclave_init.runtime.notifications import NotifySocket, parse_notification
from enclavekit_enclave_init.runtime.reactor import WRITE, Reactor, TimerHandle
from enclavekit_enclave_init.runtime.spawn import STATUS_CANNOT_RUN
from enclavekit_enclave_init.runtime.streams import OutputStreams
from enclavekit_enclave_init.supervision import events as ev
from enclavekit_enclave_init.supervision.state import UnitStatus
from enclavekit_enclave_init.supervision.supervisor import Supervisor
from enclavekit_enclave_init.units.protections import Abilities
from enclavekit_enclave_init.units.unit import Unit

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class EventLoop:
    """Runs a supervisor's decisions until it powers off."""

    def __init__(
        self,
        supervisor: Supervisor,
        *,
        base_environment: Sequence[tuple[str, str]],
        hub: LogHub,
        console: Console,
        journal: Journal,
        may_mount: bool,
        cgroups: Cgroups,
        abilities: Abilities,
    ) -> None:
        """Begin with nothing started.

        Args:
            may_mount: BindPaths and MountAPIVFS are carried out; otherwise a unit that needs them does not start.
            cgroups: where units get groups of their own. abilities: what units may ask for.
        """
        self.supervisor = supervisor
        self.reactor = Reactor()
        """For others who wait: sockets of the control interface, for example."""
        self.observers: list[Callable[[str, str], None]] = []
        """Called with (unit, state) after every change of a state."""
        self.on_hangup: Callable[[], object] = lambda: None
        """What SIGHUP asks for."""
        self._hub, self._console, self._journal, self._cgroups = hub, console, journal, cgroups
        self._streams = OutputStreams(self.reactor, hub)
        self._children = Children(self.reactor, self._streams, cgroups, self._on_started, self._on_ended)
        self._launcher = Launcher(
            self.reactor,
            cgroups,
            journal,
            base_environment,
            abilities,
            may_mount=may_mount,
            on_notification=self._on_notification,
        )
        self._timers: dict[tuple[str, ev.Timer], TimerHandle] = {}
        self._stop_reason = ""
        self._must_reload = False
        self._queue: deque[ev.Action] = deque()
        self._performing = False
        self._outcome: ev.Outcome | None = None

    def run(self) -> ev.Outcome:
        """Start the units and return when everything has stopped."""
        self.reactor.catch_signals(STOP_SIGNALS, self._on_stop_signal)
        self.reactor.catch_signals([signal.SIGCHLD], self._on_child_signal)
        self.reactor.catch_signals([signal.SIGHUP], self._on_hangup_signal)
        self._console.watch(self._on_console_backlog)
        self._children.must_reap = True  # what PID 1 has inherited
        try:
            self.perform(self.supervisor.start(time.monotonic()))
            while self._outcome is None:
                self._turn()
            return self._outcome
        finally:
            self._console.watch(lambda fd, waiting: None)
            self.reactor.close()
            self._launcher.close()

    # for others -----------------------------------------------------------------------------------------------

    def snapshot(self) -> list[UnitStatus]:
        """Return every unit with its process, by name."""
        known = self.supervisor.snapshot(time.monotonic())
        return [
            replace(status, pid=self.pid_of(status.name), cgroup=self._cgroups.directory_of(status.name))
            for status in known
        ]

    def pid_of(self, name: str) -> int | None:
        """Return the pid of a unit's main process, if it has one."""
        return self._children.pid_of(name)

    def unit_of(self, pid: int) -> str | None:
        """Return the unit whose process that is: by its session, else by its cgroup."""
        return self._children.unit_of(pid)

    def run_helper(self, task: Callable[[], None], done: Callable[[str], None]) -> None:
        """Run `task` in a child of its own; `done` gets what went wrong, or nothing. Raises OSError."""
        self._children.run_helper(task, done)

    def start_other(
        self, unit: Unit, on_started: Callable[[int], None], on_ended: Callable[[int, ev.Ending], None]
    ) -> int:
        """Run a process that the supervisor knows nothing of; return its pid. Raises OSError, EnclavekitError."""
        child = self._launcher.start_bare(unit)
        self._children.add_other(unit, child, on_started, on_ended)
        return child.pid

    def end_now(self, reason: str) -> None:
        """End without stopping anything in order: whoever runs us kills what is left."""
        self._finish(ev.Outcome(reason))

    # what happens ---------------------------------------------------------------------------------------------

    def _turn(self) -> None:
        self.reactor.wait(at_once=self._children.must_reap or self._must_reload or bool(self._stop_reason))
        if self._stop_reason:
            reason, self._stop_reason = self._stop_reason, ""
            self.perform(self.supervisor.stop_all(reason, time.monotonic()))
        if self._must_reload:
            self._must_reload = False
            try:
                self.on_hangup()
            except EnclavekitError as exc:
                self._journal(str(exc))
        if self._children.must_reap:
            self._children.reap()

    def _on_stop_signal(self, number: int, frame: object) -> None:
        self._stop_reason = f"{signal.Signals(number).name} was sent to PID {os.getpid()}"

    def _on_hangup_signal(self, number: int, frame: object) -> None:
        self._must_reload = True

    def _on_child_signal(self, number: int, frame: object) -> None:
        self._children.must_reap = True

    def _on_started(self, process: Process) -> None:
        self._handle(ev.Started(process.unit.name))

    def _on_ended(self, process: Process, ending: ev.Ending) -> None:
        name, role = process.unit.name, process.role
        self._handle(ev.Exited(name, ending) if role is None else ev.CommandExited(name, role, ending))

    def _on_notification(self, name: str, source: NotifySocket) -> None:
        received = source.receive()
        # one at a time: a unit that floods its socket must not keep the loop
        if received is not None and self.unit_of(received[0]) == name:
            self._handle(ev.Notified(name, parse_notification(received[1])))

    def _on_console_backlog(self, fd: int, waiting: bool) -> None:
        if waiting:
            self.reactor.watch(fd, WRITE, self._console.flush)
        else:
            self.reactor.unwatch(fd)

    def _handle(self, event: ev.Event) -> None:
        self.perform(self.supervisor.handle(event, time.monotonic()))

    # what is done about it ------------------------------------------------------------------------------------

    def perform(self, actions: list[ev.Action]) -> None:
        """Run what the supervisor, or an operation on it, has decided.

        Called while it runs, by an observer for example, it appends: actions keep the order of the decisions.
        """
        self._queue += actions
        if self._performing:
            return
        self._performing = True
        try:
            while self._queue:
                self._run_action(self._queue.popleft())
        finally:
            self._performing = False

    def _run_action(self, action: ev.Action) -> None:
        match action:
            case ev.Spawn(name):
                failed = self._spawn(name, None, self.supervisor.records[name].unit)
                if failed is not None:
                    self._queue += self.supervisor.handle(ev.Exited(name, failed), time.monotonic())
            case ev.SpawnCommand(name, slot, argv):
                failed = self._spawn(name, slot, replace(self.supervisor.records[name].unit, argv=argv))
                if failed is not None:
                    self._queue += self.supervisor.handle(ev.CommandExited(name, slot, failed), time.monotonic())
            case ev.DropCommand(name, slot):
                self._children.drop(name, slot)
            case ev.Signal(name, number, main_only):
                self._children.signal(name, number, main_only=main_only)
            case ev.KillSession(name):
                self._children.kill(name)
            case ev.SetTimer(name, delay_s, timer):
                self._set_timer(name, timer, delay_s)
            case ev.CancelTimer(name, timer):
                self._cancel_timer(name, timer)
            case ev.Changed(name, state):
                for observer in list(self.observers):
                    observer(name, state)
            case ev.Note(text):
                self._journal(text)
            case ev.PowerOff(outcome):
                self._finish(outcome)

    def _spawn(self, name: str, role: Role, unit: Unit) -> ev.Ending | None:
        if role is None:
            # whoever kept them after its unit had ended has lost its reader
            self._streams.close(name)
        oom_kills = self._cgroups.count_oom_kills(name)
        try:
            child = self._launcher.start(unit, is_main=role is None)
        except (OSError, EnclavekitError) as exc:
            return ev.Ending(exit_status=STATUS_CANNOT_RUN, failure=describe_cause(exc))
        if role is None:
            self._journal(f"{name} starts as pid {child.pid}")
        self._children.add(unit, role, child, oom_kills)
        return None

    def _set_timer(self, name: str, timer: ev.Timer, delay_s: float) -> None:
        self._cancel_timer(name, timer)

        def fire() -> None:
            del self._timers[name, timer]
            self._handle(ev.TimerFired(name, timer))

        self._timers[name, timer] = self.reactor.call_later(delay_s, fire)

    def _cancel_timer(self, name: str, timer: ev.Timer) -> None:
        handle = self._timers.pop((name, timer), None)
        if handle is not None:
            handle.cancel()

    def _finish(self, outcome: ev.Outcome) -> None:
        self._streams.close_all()
        for name, count in self._hub.lost_lines.items():
            self._journal(f"{count} lines of {name} could not be written to its log")
        for name in self.supervisor.records:
            self._cgroups.remove(name)
        self._cgroups.close()
        self._launcher.close_sockets()
        self._outcome = outcome
