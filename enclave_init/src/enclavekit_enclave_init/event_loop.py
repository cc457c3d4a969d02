# SPDX-License-Identifier: Apache-2.0
"""The one loop of PID 1: waits for children, pipes, timers and signals, and runs what the supervisor decides.

One thread, no polling: with nothing to do it sleeps in epoll. This is the only place that reaps, so a pid is never
signalled after its number could have gone to somebody else.
"""

from __future__ import annotations

import os
import selectors
import signal
import time
from collections import deque
from collections.abc import Iterable, Sequence

from enclavekit_core.errors import EnclavekitError, describe_cause

from enclavekit_enclave_init import events as ev
from enclavekit_enclave_init.console import Console
from enclavekit_enclave_init.journal import Journal
from enclavekit_enclave_init.logs.hub import LogHub
from enclavekit_enclave_init.logs.records import STDERR, STDOUT
from enclavekit_enclave_init.mounts import bind_unit_paths
from enclavekit_enclave_init.output import LineSplitter
from enclavekit_enclave_init.sessions import kill_session, signal_group
from enclavekit_enclave_init.spawn import MAX_FAILURE_BYTES, STATUS_CANNOT_RUN, spawn
from enclavekit_enclave_init.supervisor import Supervisor
from enclavekit_enclave_init.units import Unit

MAX_REAPS_PER_TURN = 256  # then the pipes get their turn, however many orphans there are
READ_BYTES = 65536  # a pipe's capacity
MAX_DRAIN_READS = 16  # of a unit that has ended; what its escaped children still write is not waited for
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class _Process:
    """The main process of a unit while it runs."""

    def __init__(self, unit: Unit, pid: int, failure_fd: int) -> None:
        self.unit, self.pid, self.failure_fd = unit, pid, failure_fd
        self.failure = b""


class _Stream:
    """One output pipe of a unit; outlives the main process if others hold its other end."""

    def __init__(self, name: str, fd: int, kind: str) -> None:
        self.name, self.fd, self.kind = name, fd, kind
        self.splitter = LineSplitter()


class EventLoop:
    """Runs a supervisor's decisions until it powers off."""

    def __init__(
        self,
        supervisor: Supervisor,
        units: Iterable[Unit],
        *,
        base_environment: Sequence[tuple[str, str]],
        hub: LogHub,
        console: Console,
        journal: Journal,
        may_mount: bool,
    ) -> None:
        """`may_mount`: BindPaths and MountAPIVFS are carried out; otherwise a unit that needs them does not start."""
        self._supervisor = supervisor
        self._units = {unit.name: unit for unit in units}
        self._base_environment = base_environment
        self._hub = hub
        self._console, self._journal, self._may_mount = console, journal, may_mount
        self._by_pid: dict[int, _Process] = {}
        self._by_unit: dict[str, _Process] = {}
        self._streams: dict[str, list[_Stream]] = {name: [] for name in self._units}
        self._deadlines: dict[str, float] = {}
        self._stop_reason = ""
        self._must_reap = True
        self._outcome: ev.Outcome | None = None
        self._selector = selectors.DefaultSelector()
        self._stdin = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)

    def run(self) -> ev.Outcome:
        """Start the units and return when everything has stopped."""
        wake, waker = os.pipe()
        os.set_blocking(wake, False)
        os.set_blocking(waker, False)
        # the handlers only note and wake: a signal that comes before select() makes it return at once
        previous_waker = signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
        previous = {number: signal.signal(number, self._on_stop_signal) for number in STOP_SIGNALS}
        previous[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, self._on_child_signal)
        self._selector.register(wake, selectors.EVENT_READ, lambda: _drain(wake))
        self._console.watch(self._on_console_backlog)
        try:
            self._perform(self._supervisor.start(time.monotonic()))
            while self._outcome is None:
                self._turn()
            return self._outcome
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(previous_waker)
            self._console.watch(lambda fd, waiting: None)
            self._close(wake, waker)

    def _turn(self) -> None:
        for key, _mask in self._selector.select(self._time_to_wait()):
            # one callback may close what another was ready for
            if self._selector.get_map().get(key.fd) is key:
                key.data()
        if self._stop_reason:
            reason, self._stop_reason = self._stop_reason, ""
            self._perform(self._supervisor.stop_all(reason, time.monotonic()))
        if self._must_reap:
            self._reap()
        self._fire_timers()

    def _time_to_wait(self) -> float | None:
        if self._must_reap or self._stop_reason:
            return 0.0
        if not self._deadlines:
            return None
        return max(0.0, min(self._deadlines.values()) - time.monotonic())

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
            if process is not None:
                kill_session(process.pid)
            os.waitpid(info.si_pid, 0)
            if process is not None:
                self._on_main_exit(process, info)
        self._must_reap = True

    def _on_main_exit(self, process: _Process, info: os.waitid_result) -> None:
        name = process.unit.name
        del self._by_unit[name]
        self._drain_streams(name)
        if process.failure_fd >= 0:
            self._on_failure_pipe(process)
        failure = process.failure.decode(errors="replace")
        if info.si_code == os.CLD_EXITED:
            ending = ev.Ending(exit_status=info.si_status, failure=failure)
        else:
            ending = ev.Ending(signal=info.si_status, failure=failure)
        self._handle(ev.Exited(name, ending))

    def _fire_timers(self) -> None:
        now = time.monotonic()
        for name in [name for name, deadline in self._deadlines.items() if deadline <= now]:
            # an earlier one of this round may have cancelled it
            if self._deadlines.get(name, now + 1) <= now:
                del self._deadlines[name]
                self._handle(ev.TimerFired(name))

    # actions --------------------------------------------------------------------------------------------------

    def _handle(self, event: ev.Event) -> None:
        self._perform(self._supervisor.handle(event, time.monotonic()))

    def _perform(self, actions: list[ev.Action]) -> None:
        queue = deque(actions)
        while queue:
            match queue.popleft():
                case ev.Spawn(name):
                    failed = self._spawn(name)
                    if failed is not None:
                        queue += self._supervisor.handle(failed, time.monotonic())
                case ev.Signal(name, number):
                    if name in self._by_unit:
                        signal_group(self._by_unit[name].pid, number)
                case ev.KillSession(name):
                    if name in self._by_unit:
                        kill_session(self._by_unit[name].pid)
                case ev.SetTimer(name, delay_s):
                    self._deadlines[name] = time.monotonic() + delay_s
                case ev.CancelTimer(name):
                    self._deadlines.pop(name, None)
                case ev.Note(text):
                    self._journal(text)
                case ev.PowerOff(outcome):
                    self._finish(outcome)

    def _spawn(self, name: str) -> ev.Exited | None:
        unit = self._units[name]
        for stream in list(self._streams[name]):
            # whoever kept them after its unit had ended has lost its reader
            self._close_stream(stream)
        try:
            if self._may_mount:
                bind_unit_paths(unit)
            elif unit.bind_paths:
                raise OSError("BindPaths needs PID 1")
            child = spawn(unit, self._base_environment, self._stdin)
        except (OSError, EnclavekitError) as exc:
            return ev.Exited(name, ev.Ending(exit_status=STATUS_CANNOT_RUN, failure=describe_cause(exc)))
        self._journal(f"{name} starts as pid {child.pid}")
        process = _Process(unit, child.pid, child.failure_fd)
        self._by_pid[child.pid] = self._by_unit[name] = process
        self._selector.register(child.failure_fd, selectors.EVENT_READ, lambda: self._on_failure_pipe(process))
        for fd, kind in ((child.stdout_fd, STDOUT), (child.stderr_fd, STDERR)):
            stream = _Stream(name, fd, kind)
            self._streams[name].append(stream)
            self._selector.register(fd, selectors.EVENT_READ, lambda stream=stream: self._read_stream(stream))
        return None

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
        self._close(process.failure_fd)
        process.failure_fd = -1
        if not process.failure:
            self._handle(ev.Started(process.unit.name))

    def _finish(self, outcome: ev.Outcome) -> None:
        for name, streams in self._streams.items():
            self._drain_streams(name)
            for stream in list(streams):
                self._close_stream(stream)
        for name, count in self._hub.lost_lines.items():
            self._journal(f"{count} lines of {name} could not be written to its log")
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
        for stream in list(self._streams[name]):
            for _ in range(MAX_DRAIN_READS):
                if not self._read_stream(stream):
                    break

    def _close_stream(self, stream: _Stream) -> None:
        self._streams[stream.name].remove(stream)
        self._close(stream.fd)
        self._hub.write(stream.name, stream.kind, stream.splitter.feed_eof())

    def _on_console_backlog(self, fd: int, waiting: bool) -> None:
        if waiting:
            self._selector.register(fd, selectors.EVENT_WRITE, self._console.flush)
        else:
            self._selector.unregister(fd)

    def _close(self, *fds: int) -> None:
        for fd in fds:
            if fd in self._selector.get_map():
                self._selector.unregister(fd)
            os.close(fd)


def _drain(fd: int) -> None:
    """Empty the wake-up pipe; what its bytes say, the handlers have noted."""
    try:
        while os.read(fd, 4096):
            pass
    except BlockingIOError:
        pass
