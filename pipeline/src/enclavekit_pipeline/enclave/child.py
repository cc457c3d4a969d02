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
import termios
from dataclasses import dataclass

from enclavekit_core.errors import InputError, describe_cause

from enclavekit_pipeline.enclave.client_groups import ClientGroups
from enclavekit_pipeline.enclave.clients import Grant
from enclavekit_pipeline.enclave.confine import Account, confinement, find_account
from enclavekit_pipeline.enclave.pipes import InputPipe, OutputPipe
from enclavekit_pipeline.enclave.root import Root
from enclavekit_pipeline.enclave.sessions import signal_session
from enclavekit_pipeline.enclave.shell import LOGIN_FLAG, find_shell
from enclavekit_pipeline.enclave.starting import Process, Starter
from enclavekit_pipeline.wire.exec_messages import ExecRequest, Exit, ShellRequest, WindowSize

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
SIGNAL_BASE = 128
WINSIZE = struct.Struct("HHHH")  # rows, columns, and two that nobody uses: struct winsize, ioctl_tty(2)
MAX_PATH_FOLDERS = 64
END_OF_INPUT = b"\x04"  # what a terminal takes for it, typed at the beginning of a line


@dataclass
class Child:
    """A running process and our ends of its pipes; `stdin` is None where it reads /dev/null, `stderr` where a terminal
    carries both.
    """

    process: Process
    stdin: InputPipe | None
    stdout: OutputPipe
    stderr: OutputPipe | None
    terminal: int | None = None
    """Descriptor of our end; `stdout` closes it."""
    at_line_start: bool = True
    """Of the input to a terminal."""

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

    def candidates(self, environment: dict[str, str]) -> list[str]:
        """Return where it may be, in this order: as a shell looks for it in the command's own PATH."""
        name = self.path or self.argv[0]
        if "/" in name:
            return [name]
        return [os.path.join(folder, name) for folder in environment["PATH"].split(":")[:MAX_PATH_FOLDERS]]


def spawn(
    request: ExecRequest | ShellRequest, grant: Grant, root: Root, starter: Starter, groups: ClientGroups
) -> Child:
    """Start the command, or the shell, in `root`.

    Raises: InputError with the cause it could not be started for, Refused if the client runs too much already.
    """
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
    with contextlib.ExitStack() as ours, contextlib.ExitStack() as theirs:
        joining = theirs.enter_context(groups.joining(grant))
        todo = theirs.enter_context(confinement(request, grant, root, account, joining))
        order = (
            [os.fsencode(path) for path in program.candidates(environment)],
            [os.fsencode(word) for word in program.argv],
            {os.fsencode(name): os.fsencode(value) for name, value in environment.items()},
            todo.steps,
        )
        ends = _open_terminal(request.terminal, account) if request.terminal is not None else _open_pipes(program.stdin)
        for descriptor in ends.ours:
            ours.callback(os.close, descriptor)
        for descriptor in set(ends.theirs):
            theirs.callback(os.close, descriptor)
        process = starter.start(order, [*ends.theirs, *todo.descriptors])
        ours.pop_all()
    return _child(process, ends, stdin=program.stdin)


@dataclass(frozen=True)
class Ends:
    """Descriptors of the command's standard input, output and error, and ours of them."""

    theirs: tuple[int, int, int]
    ours: list[int]
    """Input, output, error; of a terminal the first two, for one each."""


def _open_pipes(stdin: bool) -> Ends:
    """Raises InputError if there are no descriptors left."""
    opened: list[int] = []
    try:
        for _ in range(3):
            opened += os.pipe2(os.O_CLOEXEC)
        if not stdin:
            for index in (0, 1):
                os.close(opened[index])
                opened[index] = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    except OSError as exc:
        for descriptor in opened:
            with contextlib.suppress(OSError):
                os.close(descriptor)
        raise InputError("open", "pipes in the enclave", describe_cause(exc)) from exc
    return Ends((opened[0], opened[3], opened[5]), [opened[1], opened[2], opened[4]])


def _open_terminal(size: WindowSize, account: Account) -> Ends:
    """Raises InputError if there is none to be had."""
    opened: list[int] = []
    try:
        opened += os.openpty()  # both close on exec
        mine, its = opened
        set_size(mine, size)
        if account.changes:
            os.fchown(its, account.uid, account.gid)  # so that the command may open it again, as /dev/tty
        return Ends((its, its, its), [os.dup(mine), mine])  # one for each direction: each side closes its own
    except OSError as exc:
        for descriptor in opened:
            os.close(descriptor)
        raise InputError("open", "a terminal in the enclave", describe_cause(exc)) from exc


def _child(process: Process, ends: Ends, *, stdin: bool) -> Child:
    pipe = InputPipe(ends.ours[0])
    if not stdin:
        pipe.close()
    output, error = OutputPipe(ends.ours[1]), OutputPipe(ends.ours[2]) if len(ends.ours) > 2 else None
    return Child(process, pipe if stdin else None, output, error, ends.ours[1] if error is None else None)


def set_size(terminal: int, size: WindowSize) -> None:
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, WINSIZE.pack(size.rows, size.columns, 0, 0))


def exit_of(returncode: int, *, timed_out: bool) -> Exit:
    """Return what the caller is told, in the shell's terms."""
    if returncode < 0:
        return Exit(status=SIGNAL_BASE - returncode, signal=-returncode, timed_out=timed_out)
    return Exit(status=returncode, timed_out=timed_out)
