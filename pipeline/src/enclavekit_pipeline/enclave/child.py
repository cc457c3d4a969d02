# SPDX-License-Identifier: Apache-2.0
"""Starting and ending the process of one exec: its own session, so that all of it ends together; its pipes, or its
terminal.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import struct
import subprocess
import termios
from collections.abc import Callable
from dataclasses import dataclass

from enclavekit_core.errors import InputError, describe_cause

from enclavekit_pipeline.enclave.clients import Grant
from enclavekit_pipeline.enclave.confine import Account, Step, confinement, find_account
from enclavekit_pipeline.enclave.pipes import InputPipe, OutputPipe
from enclavekit_pipeline.enclave.root import Root
from enclavekit_pipeline.enclave.sessions import signal_session
from enclavekit_pipeline.enclave.shell import LOGIN_FLAG, find_shell
from enclavekit_pipeline.wire.exec_messages import ExecRequest, Exit, ShellRequest, WindowSize

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
SIGNAL_BASE = 128
WINSIZE = struct.Struct("HHHH")  # rows, columns, and two that nobody uses: struct winsize, ioctl_tty(2)
MAX_STEP_BYTES = 512  # of the name of a step that failed
END_OF_INPUT = b"\x04"  # what a terminal takes for it, typed at the beginning of a line


@dataclass
class Child:
    """A running process and our ends of its pipes; `stdin` is None where it reads /dev/null, `stderr` where a terminal
    carries both.
    """

    process: subprocess.Popen[bytes]
    stdin: InputPipe | None
    stdout: OutputPipe
    stderr: OutputPipe | None
    terminal: int | None = None
    """Descriptor of our end; `stdout` closes it."""
    at_line_start: bool = True
    """Of the input to a terminal."""

    def wait(self) -> None:
        """Block until the process has ended, and leave it unreaped: its number, which is its group's, stays ours."""
        with contextlib.suppress(ChildProcessError):  # reaped meanwhile, by whoever gave the command up
            os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT)

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Signal the whole session; not after `reap`, when the number may be somebody else's."""
        if self.process.returncode is None:
            signal_session(self.process.pid, number)

    def signal(self, number: int) -> None:
        """Pass a signal on to the command, and to what is in front on its terminal."""
        if self.process.returncode is not None:
            return
        groups = {self.process.pid}
        if self.terminal is not None:
            with contextlib.suppress(OSError):
                groups.add(os.tcgetpgrp(self.terminal))
        for group in groups - {0}:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(group, number)

    def resize(self, size: WindowSize) -> None:
        """Set the terminal's size; the kernel tells the command."""
        if self.terminal is not None:
            with contextlib.suppress(OSError):
                set_size(self.terminal, size)

    async def write(self, data: bytes) -> None:
        """Pass input on. A command that reads no more is its own affair: the rest is dropped, as in a pipe."""
        if self.stdin is not None and data:
            with contextlib.suppress(OSError):  # EPIPE; EIO of a terminal
                await self.stdin.write(data)
            self.at_line_start = data.endswith((b"\n", b"\r"))

    async def end_input(self) -> None:
        if self.stdin is None:
            return
        if self.terminal is None:
            self.stdin.close()
            self.stdin = None
            return
        # in the middle of a line the first only sends what is there
        await self.write(END_OF_INPUT if self.at_line_start else 2 * END_OF_INPUT)

    @property
    def outputs(self) -> list[OutputPipe]:
        return [pipe for pipe in (self.stdout, self.stderr) if pipe is not None]

    def reap(self) -> int:
        """Return the exit status as subprocess has it; blocks if the process still runs."""
        return self.process.wait()

    def close(self) -> None:
        """Idempotent."""
        self.terminal = None
        for pipe in (self.stdin, self.stdout, self.stderr):
            if pipe is not None:
                pipe.close()


@dataclass(frozen=True)
class Program:
    """What is executed."""

    argv: list[str]
    stdin: bool
    path: str | None = None
    """Where argv[0] is not it."""


def spawn(request: ExecRequest | ShellRequest, grant: Grant, root: Root) -> Child:
    """Start the command, or the shell, in `root`. Raises InputError with the cause it could not be started for."""
    account = find_account(request, grant, root)
    if isinstance(request, ShellRequest):
        shell = find_shell(root, account.uid)
        program = Program([LOGIN_FLAG + os.path.basename(shell)], True, shell)
    else:
        program = Program(request.argv, request.stdin)
    environment = {"PATH": DEFAULT_PATH, "HOME": account.home}
    if request.terminal is not None:
        environment["TERM"] = request.terminal.term
    if program.path is not None:
        environment["SHELL"] = program.path
    environment |= request.environment
    with (
        contextlib.ExitStack() as ours,
        contextlib.ExitStack() as theirs,
        confinement(request, grant, root, account) as steps,
    ):
        if request.terminal is not None:
            return _spawn_on_terminal(program, request.terminal, account, environment, steps, ours, theirs)
        return _spawn_on_pipes(program, environment, steps, ours, theirs)


def _spawn_on_pipes(
    program: Program,
    environment: dict[str, str],
    steps: list[Step],
    ours: contextlib.ExitStack,
    theirs: contextlib.ExitStack,
) -> Child:
    pipes: list[tuple[int, int]] = []  # ours, the command's
    for _ in range(3):
        read, write = os.pipe2(os.O_CLOEXEC)
        mine, its = (write, read) if not pipes else (read, write)
        ours.callback(os.close, mine)
        theirs.callback(os.close, its)
        pipes.append((mine, its))
    standard = (pipes[0][1] if program.stdin else subprocess.DEVNULL, pipes[1][1], pipes[2][1])
    process = _start(program, environment, steps, standard)
    ours.pop_all()
    stdin = InputPipe(pipes[0][0])
    if not program.stdin:
        stdin.close()
    return Child(process, stdin if program.stdin else None, OutputPipe(pipes[1][0]), OutputPipe(pipes[2][0]))


def _spawn_on_terminal(
    program: Program,
    size: WindowSize,
    account: Account,
    environment: dict[str, str],
    steps: list[Step],
    ours: contextlib.ExitStack,
    theirs: contextlib.ExitStack,
) -> Child:
    try:
        mine, its = os.openpty()  # both close on exec
        ours.callback(os.close, mine)
        theirs.callback(os.close, its)
        set_size(mine, size)
        if account.changes:
            os.fchown(its, account.uid, account.gid)  # so that the command may open it again, as /dev/tty
        second = os.dup(mine)  # one for each direction: each side closes its own
        ours.callback(os.close, second)
    except OSError as exc:
        raise InputError("open", "a terminal in the enclave", describe_cause(exc)) from exc
    process = _start(program, environment, steps, (its, its, its))
    ours.pop_all()
    stdin: InputPipe | None = InputPipe(second)
    if not program.stdin:
        assert stdin is not None
        stdin.close()
        stdin = None
    return Child(process, stdin, OutputPipe(mine), None, mine)


def _start(
    program: Program, environment: dict[str, str], steps: list[Step], standard: tuple[int, int, int]
) -> subprocess.Popen[bytes]:
    read, write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)  # the name of the step that failed
    try:
        return subprocess.Popen(
            program.argv,
            executable=program.path,
            stdin=standard[0],
            stdout=standard[1],
            stderr=standard[2],
            env=environment,
            start_new_session=True,
            preexec_fn=_runner(steps, write),
        )
    except OSError as exc:
        raise InputError("run", repr(program.argv[0]), describe_cause(exc)) from exc
    except subprocess.SubprocessError as exc:
        with contextlib.suppress(BlockingIOError):
            if failed := os.read(read, MAX_STEP_BYTES):
                raise InputError("run", repr(program.argv[0]), failed.decode(errors="replace")) from exc
        raise InputError("run", repr(program.argv[0]), "its process could not be prepared") from exc
    finally:
        os.close(read)
        os.close(write)


def _runner(steps: list[Step], report: int) -> Callable[[], None]:
    """Return what runs in the child between fork and exec."""

    def run() -> None:
        for name, action in steps:
            try:
                action()
            except Exception as exc:
                os.write(report, f"it could not {name}: {describe_cause(exc)}".encode()[:MAX_STEP_BYTES])
                raise

    return run


def set_size(terminal: int, size: WindowSize) -> None:
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, WINSIZE.pack(size.rows, size.columns, 0, 0))


def exit_of(returncode: int, *, timed_out: bool) -> Exit:
    """Return what the caller is told, in the shell's terms."""
    if returncode < 0:
        return Exit(status=SIGNAL_BASE - returncode, signal=-returncode, timed_out=timed_out)
    return Exit(status=returncode, timed_out=timed_out)
