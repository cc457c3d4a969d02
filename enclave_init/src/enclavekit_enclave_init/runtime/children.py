# SPDX-License-Identifier: Apache-2.0
"""The processes that are PID 1's own to start, to signal and to reap.

This is the only place that reaps, so a pid is never signalled after its number could have gone to somebody else.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

from enclavekit_enclave_init.logs.records import STDERR, STDOUT
from enclavekit_enclave_init.runtime.cgroups import Cgroups
from enclavekit_enclave_init.runtime.helper import fork_helper
from enclavekit_enclave_init.runtime.reactor import READ, Reactor
from enclavekit_enclave_init.runtime.sessions import kill_session, session_of, signal_group, signal_process
from enclavekit_enclave_init.runtime.spawn import MAX_FAILURE_BYTES, Child
from enclavekit_enclave_init.runtime.streams import OutputStreams
from enclavekit_enclave_init.supervision.events import Ending, Slot
from enclavekit_enclave_init.units.unit import Unit

MAX_REAPS_PER_TURN = 256  # then the pipes get their turn, however many orphans there are

Role = Slot | None  # None: the main process


class Process:
    """A process of a unit that is ours to reap: its main one, a command or a health check; or one of no unit."""

    def __init__(self, unit: Unit, role: Role, child: Child) -> None:
        self.unit, self.role, self.pid, self.failure_fd = unit, role, child.pid, child.failure_fd
        self.failure = b""
        self.dropped = False
        """Nobody wants to know of its end."""
        self.on_started: Callable[[int], None] | None = None
        self.on_ended: Callable[[int, Ending], None] | None = None
        """Set for what belongs to no unit: the supervisor knows nothing of it."""


class Children:
    """All of them. `on_started(process)` and `on_ended(process, ending)` are told of those of units."""

    def __init__(
        self,
        reactor: Reactor,
        streams: OutputStreams,
        cgroups: Cgroups,
        on_started: Callable[[Process], None],
        on_ended: Callable[[Process, Ending], None],
    ) -> None:
        self._reactor, self._streams, self._cgroups = reactor, streams, cgroups
        self._on_started, self._on_ended = on_started, on_ended
        self._by_pid: dict[int, Process] = {}
        self._by_unit: dict[tuple[str, Role], Process] = {}
        self._helpers: dict[int, tuple[int, Callable[[str], None]]] = {}  # pid -> (what it says, who is told)
        self._oom_kills: dict[str, int] = {}  # as counted when the main process was started
        self.must_reap = False
        """Some may have ended: `reap` is due."""

    # starting -------------------------------------------------------------------------------------------------

    def add(self, unit: Unit, role: Role, child: Child, oom_kills: int) -> None:
        """Take a process of a unit that has just been started; `oom_kills`: of the unit's group until then."""
        process = Process(unit, role, child)
        self._by_unit[unit.name, role] = process
        self._watch(process, child)
        if role is None:
            self._oom_kills[unit.name] = oom_kills

    def add_other(
        self, unit: Unit, child: Child, on_started: Callable[[int], None], on_ended: Callable[[int, Ending], None]
    ) -> None:
        """Take a process that belongs to no unit; `unit` says what it is called."""
        process = Process(unit, None, child)
        process.on_started, process.on_ended = on_started, on_ended
        self._watch(process, child)

    def run_helper(self, task: Callable[[], None], done: Callable[[str], None]) -> None:
        """Run `task` in a child; `done` gets what went wrong, or nothing. Raises OSError."""
        pid, reader = fork_helper(task)
        self._helpers[pid] = (reader, done)

    def _watch(self, process: Process, child: Child) -> None:
        self._by_pid[child.pid] = process
        self._reactor.watch(child.failure_fd, READ, lambda: self._read_failure(process))
        for kind, fd in ((STDOUT, child.stdout_fd), (STDERR, child.stderr_fd)):
            self._streams.add(process.unit.name, kind, fd)

    def _read_failure(self, process: Process) -> None:
        """The end of this pipe is exec; what comes before it is why there was none."""
        try:
            data = os.read(process.failure_fd, MAX_FAILURE_BYTES)
        except BlockingIOError:
            return
        if data:
            process.failure += data
            if len(process.failure) < MAX_FAILURE_BYTES:
                return
        self._reactor.close_fd(process.failure_fd)
        process.failure_fd = -1
        if process.failure:
            return
        if process.on_started is not None:
            process.on_started(process.pid)
        elif process.role is None:
            self._on_started(process)

    # looking and signalling -----------------------------------------------------------------------------------

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

    def signal(self, name: str, number: int, *, main_only: bool) -> None:
        """Signal the main process of a unit, else its command: that one or all of its group."""
        process = self._by_unit.get((name, None)) or self._by_unit.get((name, Slot.COMMAND))
        if process is not None:
            (signal_process if main_only else signal_group)(process.pid, number)

    def kill(self, name: str) -> None:
        """SIGKILL all that belongs to a unit."""
        for (owner, _role), process in list(self._by_unit.items()):
            if owner == name:
                kill_session(process.pid)
        self._cgroups.kill(name)

    def drop(self, name: str, slot: Slot) -> None:
        """SIGKILL a command or check of a unit; its end is not told."""
        process = self._by_unit.pop((name, slot), None)
        if process is not None:
            process.dropped = True
            kill_session(process.pid)

    # reaping --------------------------------------------------------------------------------------------------

    def reap(self) -> None:
        """Reap who has ended, orphans too; at most MAX_REAPS_PER_TURN, then `must_reap` stays."""
        self.must_reap = False
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
                self._take_end(process, info)
            elif info.si_pid in self._helpers:
                self._take_helper_end(info)
        self.must_reap = True

    def _take_helper_end(self, info: os.waitid_result) -> None:
        reader, done = self._helpers.pop(info.si_pid)
        try:
            message = os.read(reader, MAX_FAILURE_BYTES).decode(errors="replace")
        except BlockingIOError:
            message = ""
        os.close(reader)
        succeeded = info.si_code == os.CLD_EXITED and info.si_status == 0
        done("" if succeeded else message or f"it ended with {info.si_status}")

    def _take_end(self, process: Process, info: os.waitid_result) -> None:
        name, role = process.unit.name, process.role
        if self._by_unit.get((name, role)) is process:
            del self._by_unit[name, role]
        self._streams.drain(name)
        if process.failure_fd >= 0:
            self._read_failure(process)
        ending = self._describe_end(process, info)
        if process.on_ended is not None:
            process.on_ended(process.pid, ending)
            return
        if process.unit.kill_mode != "process" and not any(owner == name for owner, _ in self._by_unit):
            # whoever has left the session is still in the group
            self._cgroups.kill(name)
        self._cgroups.remove(name)
        if not process.dropped:
            self._on_ended(process, ending)

    def _describe_end(self, process: Process, info: os.waitid_result) -> Ending:
        failure = process.failure.decode(errors="replace")
        if info.si_code == os.CLD_EXITED:
            return Ending(exit_status=info.si_status, failure=failure)
        name = process.unit.name
        killed = info.si_status == signal.SIGKILL
        oom = killed and self._cgroups.count_oom_kills(name) > self._oom_kills.get(name, 0)
        return Ending(signal=info.si_status, failure=failure, out_of_memory=oom)
