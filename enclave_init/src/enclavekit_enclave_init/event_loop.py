# SPDX-License-Identifier: Apache-2.0
"""The one loop of PID 1: runs what the supervisor decides and tells it what happens.

This is the only place that reaps, so a pid is never signalled after its number could have gone to somebody else.
"""

from __future__ import annotations

import os
import signal
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace

from enclavekit_core.errors import EnclavekitError, describe_cause

from enclavekit_enclave_init import events as ev
from enclavekit_enclave_init.cgroups import Cgroups
from enclavekit_enclave_init.console import Console
from enclavekit_enclave_init.helper import fork_helper
from enclavekit_enclave_init.journal import Journal
from enclavekit_enclave_init.logs.hub import LogHub
from enclavekit_enclave_init.logs.records import STDERR, STDOUT
from enclavekit_enclave_init.mounts import bind_unit_paths
from enclavekit_enclave_init.notifications import NotifySocket, parse_notification
from enclavekit_enclave_init.output import LineSplitter
from enclavekit_enclave_init.protections import Abilities, settle_protections
from enclavekit_enclave_init.reactor import READ, WRITE, Reactor, TimerHandle
from enclavekit_enclave_init.sessions import kill_session, session_of, signal_group, signal_process
from enclavekit_enclave_init.spawn import MAX_FAILURE_BYTES, STATUS_CANNOT_RUN, Child, spawn
from enclavekit_enclave_init.supervisor import Supervisor
from enclavekit_enclave_init.unit_state import UnitStatus
from enclavekit_enclave_init.units import Unit

MAX_REAPS_PER_TURN = 256  # then the pipes get their turn, however many orphans there are
READ_BYTES = 65536  # a pipe's capacity
MAX_DRAIN_READS = 16  # of a unit that has ended; what its escaped children still write is not waited for
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)

Role = ev.Slot | None  # None: the main process


class _Process:
    """A process of a unit that is ours to reap: its main one, a command or a health check."""

    def __init__(self, unit: Unit, role: Role, pid: int, failure_fd: int) -> None:
        self.unit, self.role, self.pid, self.failure_fd = unit, role, pid, failure_fd
        self.failure = b""
        self.dropped = False
        self.on_started: Callable[[int], None] | None = None
        self.on_ended: Callable[[int, ev.Ending], None] | None = None
        """Set for what belongs to no unit: the supervisor knows nothing of it."""


class _Stream:
    """One output pipe of a unit; outlives the process if others hold its other end."""

    def __init__(self, name: str, kind: str, fd: int) -> None:
        self.name, self.kind, self.fd = name, kind, fd
        self.splitter = LineSplitter()


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
        self._base_environment = base_environment
        self._hub = hub
        self._console, self._journal, self._may_mount = console, journal, may_mount
        self._by_pid: dict[int, _Process] = {}
        self._by_unit: dict[tuple[str, Role], _Process] = {}
        self._streams: dict[str, list[_Stream]] = {}
        self._timers: dict[tuple[str, ev.Timer], TimerHandle] = {}
        self._cgroups, self._abilities = cgroups, abilities
        self._oom_kills: dict[str, int] = {}
        self._notify_sockets: dict[str, NotifySocket] = {}
        self._helpers: dict[int, tuple[int, Callable[[str], None]]] = {}
        self._stop_reason = ""
        self._must_reap = True
        self._outcome: ev.Outcome | None = None
        self._stdin = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)

    def run(self) -> ev.Outcome:
        """Start the units and return when everything has stopped."""
        self.reactor.catch_signals(STOP_SIGNALS, self._on_stop_signal)
        self.reactor.catch_signals([signal.SIGCHLD], self._on_child_signal)
        self._console.watch(self._on_console_backlog)
        try:
            self.perform(self.supervisor.start(time.monotonic()))
            while self._outcome is None:
                self._turn()
            return self._outcome
        finally:
            self._console.watch(lambda fd, waiting: None)
            self.reactor.close()
            os.close(self._stdin)

    def snapshot(self) -> list[UnitStatus]:
        """Return every unit with its process, by name."""
        known = self.supervisor.snapshot(time.monotonic())
        return [
            replace(status, pid=self.pid_of(status.name), cgroup=self._cgroups.directory_of(status.name))
            for status in known
        ]

    def pid_of(self, name: str) -> int | None:
        """Return the pid of a unit's main process, if it has one."""
        process = self._by_unit.get((name, None))
        return process.pid if process is not None else None

    def unit_of(self, pid: int) -> str | None:
        """Return the unit whose process that is: by its session, else by its cgroup."""
        process = self._by_pid.get(pid) or self._by_pid.get(session_of(pid))
        if process is not None:
            return process.unit.name
        return next((name for name, _ in self._by_unit if pid in self._cgroups.pids(name)), None)

    def run_helper(self, task: Callable[[], None], done: Callable[[str], None]) -> None:
        """Run `task` in a child of its own; `done` gets what went wrong, or nothing. Raises OSError."""
        pid, reader = fork_helper(task)
        self._helpers[pid] = (reader, done)

    def _turn(self) -> None:
        self.reactor.wait(at_once=self._must_reap or bool(self._stop_reason))
        if self._stop_reason:
            reason, self._stop_reason = self._stop_reason, ""
            self.perform(self.supervisor.stop_all(reason, time.monotonic()))
        if self._must_reap:
            self._reap()

    # signals, children, timers --------------------------------------------------------------------------------

    def _on_stop_signal(self, number: int, frame: object) -> None:
        self._stop_reason = f"{signal.Signals(number).name} was sent to PID {os.getpid()}"

    def _on_child_signal(self, number: int, frame: object) -> None:
        self._must_reap = True

    def _reap(self) -> None:
        self._must_reap = False
        for _ in range(MAX_REAPS_PER_TURN):
            try:
                # looked at first: while it is a zombie, its number is still its own
                info = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if info is None:
                return
            process = self._by_pid.pop(info.si_pid, None)
            if process is not None and process.unit.kill_mode != "process":
                kill_session(process.pid)
            os.waitpid(info.si_pid, 0)
            if process is not None:
                self._on_exit(process, info)
            elif info.si_pid in self._helpers:
                self._on_helper_exit(info)
        self._must_reap = True

    def _on_helper_exit(self, info: os.waitid_result) -> None:
        reader, done = self._helpers.pop(info.si_pid)
        try:
            message = os.read(reader, MAX_FAILURE_BYTES).decode(errors="replace")
        except BlockingIOError:
            message = ""
        os.close(reader)
        succeeded = info.si_code == os.CLD_EXITED and info.si_status == 0
        done("" if succeeded else message or f"it ended with {info.si_status}")

    def _on_exit(self, process: _Process, info: os.waitid_result) -> None:
        name, role = process.unit.name, process.role
        if self._by_unit.get((name, role)) is process:
            del self._by_unit[name, role]
        self._drain_streams(name)
        if process.failure_fd >= 0:
            self._on_failure_pipe(process)
        failure = process.failure.decode(errors="replace")
        if info.si_code == os.CLD_EXITED:
            ending = ev.Ending(exit_status=info.si_status, failure=failure)
        else:
            killed = info.si_status == signal.SIGKILL
            oom = killed and self._cgroups.count_oom_kills(name) > self._oom_kills.get(name, 0)
            ending = ev.Ending(signal=info.si_status, failure=failure, out_of_memory=oom)
        if process.on_ended is not None:
            process.on_ended(process.pid, ending)
            return
        if process.unit.kill_mode != "process" and not any(owner == name for owner, _ in self._by_unit):
            # whoever has left the session is still in the group
            self._cgroups.kill(name)
        self._cgroups.remove(name)
        if not process.dropped:
            self._handle(ev.Exited(name, ending) if role is None else ev.CommandExited(name, role, ending))

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

    # actions --------------------------------------------------------------------------------------------------

    def _handle(self, event: ev.Event) -> None:
        self.perform(self.supervisor.handle(event, time.monotonic()))

    def perform(self, actions: list[ev.Action]) -> None:
        """Run what the supervisor, or an operation on it, has decided."""
        queue = deque(actions)
        while queue:
            match queue.popleft():
                case ev.Spawn(name):
                    failed = self._spawn(name, None, self.supervisor.records[name].unit)
                    if failed is not None:
                        queue += self.supervisor.handle(ev.Exited(name, failed), time.monotonic())
                case ev.SpawnCommand(name, slot, argv):
                    failed = self._spawn(name, slot, replace(self.supervisor.records[name].unit, argv=argv))
                    if failed is not None:
                        queue += self.supervisor.handle(ev.CommandExited(name, slot, failed), time.monotonic())
                case ev.DropCommand(name, slot):
                    self._drop(name, slot)
                case ev.Signal(name, number, main_only):
                    self._signal(name, number, main_only)
                case ev.KillSession(name):
                    self._kill(name)
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

    def _signal(self, name: str, number: int, main_only: bool) -> None:
        process = self._by_unit.get((name, None)) or self._by_unit.get((name, ev.Slot.COMMAND))
        if process is not None:
            (signal_process if main_only else signal_group)(process.pid, number)

    def _kill(self, name: str) -> None:
        for (owner, _role), process in list(self._by_unit.items()):
            if owner == name:
                kill_session(process.pid)
        self._cgroups.kill(name)

    def _drop(self, name: str, slot: ev.Slot) -> None:
        process = self._by_unit.pop((name, slot), None)
        if process is not None:
            process.dropped = True
            kill_session(process.pid)

    def _spawn(self, name: str, role: Role, unit: Unit) -> ev.Ending | None:
        streams = self._streams.setdefault(name, [])
        if role is None:
            for stream in list(streams):
                # whoever kept them after its unit had ended has lost its reader
                self._close_stream(stream)
        try:
            child = self._start_process(unit, is_main=role is None)
        except (OSError, EnclavekitError) as exc:
            return ev.Ending(exit_status=STATUS_CANNOT_RUN, failure=describe_cause(exc))
        if role is None:
            self._journal(f"{name} starts as pid {child.pid}")
        process = _Process(unit, role, child.pid, child.failure_fd)
        self._by_pid[child.pid] = self._by_unit[name, role] = process
        self._watch_child(process, child)
        return None

    def _watch_child(self, process: _Process, child: Child) -> None:
        self.reactor.watch(child.failure_fd, READ, lambda: self._on_failure_pipe(process))
        streams = self._streams.setdefault(process.unit.name, [])
        for kind, fd in ((STDOUT, child.stdout_fd), (STDERR, child.stderr_fd)):
            stream = _Stream(process.unit.name, kind, fd)
            streams.append(stream)
            self.reactor.watch(fd, READ, lambda stream=stream: self._read_stream(stream))  # type: ignore[misc]

    def start_other(
        self, unit: Unit, on_started: Callable[[int], None], on_ended: Callable[[int, ev.Ending], None]
    ) -> int:
        """Run a process that the supervisor knows nothing of; return its pid. Raises OSError, EnclavekitError."""
        child = spawn(unit, self._base_environment, self._stdin)
        process = _Process(unit, None, child.pid, child.failure_fd)
        process.on_started, process.on_ended = on_started, on_ended
        self._by_pid[child.pid] = process
        self._watch_child(process, child)
        return child.pid

    def end_now(self, reason: str) -> None:
        """End without stopping anything in order: whoever runs us kills what is left."""
        self._finish(ev.Outcome(reason))

    def _start_process(self, unit: Unit, *, is_main: bool) -> Child:
        unit, lacks, refusal = settle_protections(unit, self._abilities)
        if refusal:
            raise OSError(refusal)
        if lacks and is_main:
            self._journal(f"{unit.name} runs without {', '.join(lacks)}")
        if self._may_mount:
            bind_unit_paths(unit)
        elif unit.bind_paths:
            raise OSError("BindPaths needs PID 1")
        notify_path = self._open_notify_socket(unit) if unit.notify or unit.watchdog_s else ""
        groups = self._cgroups.prepare(unit)
        if is_main:
            self._oom_kills[unit.name] = self._cgroups.count_oom_kills(unit.name)
        try:
            return spawn(unit, self._base_environment, self._stdin, groups, notify_path)
        finally:
            for fd in groups:
                os.close(fd)

    def _open_notify_socket(self, unit: Unit) -> str:
        name = unit.name
        if name not in self._notify_sockets:
            made = self._notify_sockets[name] = NotifySocket(name, unit.root_directory)
            self.reactor.watch(made.fileno(), READ, lambda: self._on_notification(name, made))
        return self._notify_sockets[name].path

    def _on_notification(self, name: str, source: NotifySocket) -> None:
        received = source.receive()
        # one at a time: a unit that floods its socket must not keep the loop
        if received is not None and self.unit_of(received[0]) == name:
            self._handle(ev.Notified(name, parse_notification(received[1])))

    def _on_failure_pipe(self, process: _Process) -> None:
        """The end of this pipe is exec; what comes before it is why there was none."""
        try:
            data = os.read(process.failure_fd, MAX_FAILURE_BYTES)
        except BlockingIOError:
            return
        if data:
            process.failure += data
            if len(process.failure) < MAX_FAILURE_BYTES:
                return
        self.reactor.close_fd(process.failure_fd)
        process.failure_fd = -1
        if process.failure:
            return
        if process.on_started is not None:
            process.on_started(process.pid)
        elif process.role is None:
            self._handle(ev.Started(process.unit.name))

    def _finish(self, outcome: ev.Outcome) -> None:
        for name, streams in self._streams.items():
            self._drain_streams(name)
            for stream in list(streams):
                self._close_stream(stream)
        for name, count in self._hub.lost_lines.items():
            self._journal(f"{count} lines of {name} could not be written to its log")
        for name in self.supervisor.records:
            self._cgroups.remove(name)
        self._cgroups.close()
        for source in self._notify_sockets.values():
            self.reactor.unwatch(source.fileno())
            source.close()
        self._outcome = outcome

    # output ---------------------------------------------------------------------------------------------------

    def _read_stream(self, stream: _Stream) -> bool:
        """Take what is there, at most READ_BYTES; return whether there may be more at once."""
        try:
            data = os.read(stream.fd, READ_BYTES)
        except BlockingIOError:
            return False
        if not data:
            self._close_stream(stream)
            return False
        self._hub.write(stream.name, stream.kind, stream.splitter.feed(data))
        return len(data) == READ_BYTES

    def _drain_streams(self, name: str) -> None:
        for stream in list(self._streams.get(name, ())):
            for _ in range(MAX_DRAIN_READS):
                if not self._read_stream(stream):
                    break

    def _close_stream(self, stream: _Stream) -> None:
        self._streams[stream.name].remove(stream)
        self.reactor.close_fd(stream.fd)
        self._hub.write(stream.name, stream.kind, stream.splitter.feed_eof())

    def _on_console_backlog(self, fd: int, waiting: bool) -> None:
        if waiting:
            self.reactor.watch(fd, WRITE, self._console.flush)
        else:
            self.reactor.unwatch(fd)
