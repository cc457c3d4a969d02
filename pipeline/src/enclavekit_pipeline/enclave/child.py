# SPDX-License-Identifier: Apache-2.0
"""Starting and ending the process of one exec: its root, user, directory and environment; its own session, so that all
of it ends together.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from dataclasses import dataclass

from enclavekit_core.errors import InputError, describe_cause

from enclavekit_pipeline.enclave.pipes import InputPipe, OutputPipe
from enclavekit_pipeline.enclave.root import Root
from enclavekit_pipeline.wire.exec_messages import ExecRequest, Exit

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
SIGNAL_BASE = 128


@dataclass
class Child:
    """A running process and our ends of its pipes; `stdin` is None where it reads /dev/null."""

    process: subprocess.Popen[bytes]
    stdin: InputPipe | None
    stdout: OutputPipe
    stderr: OutputPipe

    def wait(self) -> None:
        """Block until the process has ended, and leave it unreaped: its number, which is its group's, stays ours."""
        with contextlib.suppress(ChildProcessError):  # reaped meanwhile, by whoever gave the command up
            os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT)

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Signal the process group; not after `reap`, when the number may be somebody else's."""
        if self.process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, number)

    def reap(self) -> int:
        """Return the exit status as subprocess has it; blocks if the process still runs."""
        return self.process.wait()

    def close(self) -> None:
        for pipe in (self.stdin, self.stdout, self.stderr):
            if pipe is not None:
                pipe.close()


def spawn(request: ExecRequest, root: Root) -> Child:
    """Start the command in `root`. Raises InputError with the cause the command could not be started for."""
    uid, gid, home = root.find_user(request.user) if request.user else (os.geteuid(), os.getegid(), "/")
    environment = {"PATH": DEFAULT_PATH, "HOME": home, **request.environment}
    directory = request.directory or "/"

    def enter() -> None:
        # runs in the child between fork and exec, while other threads may have held any lock: system calls only
        if root.path != "/":
            os.fchdir(root.descriptor)
            os.chroot(".")
        os.chdir(directory)
        if request.user:
            os.setgroups([gid])
            os.setgid(gid)
            os.setuid(uid)

    with contextlib.ExitStack() as ours, contextlib.ExitStack() as theirs:
        pipes: list[tuple[int, int]] = []  # ours, the command's
        for _ in range(3):
            read, write = os.pipe2(os.O_CLOEXEC)
            mine, its = (write, read) if not pipes else (read, write)
            ours.callback(os.close, mine)
            theirs.callback(os.close, its)
            pipes.append((mine, its))
        try:
            process = subprocess.Popen(
                request.argv,
                stdin=pipes[0][1] if request.stdin else subprocess.DEVNULL,
                stdout=pipes[1][1],
                stderr=pipes[2][1],
                env=environment,
                start_new_session=True,
                preexec_fn=enter,
            )
        except OSError as exc:
            raise InputError("run", repr(request.argv[0]), describe_cause(exc)) from exc
        except subprocess.SubprocessError as exc:
            cause = f"cannot enter {directory}, or become the user"  # all that the child tells of its own failure
            raise InputError("run", repr(request.argv[0]), cause) from exc
        ours.pop_all()
    stdin = InputPipe(pipes[0][0])
    if not request.stdin:
        stdin.close()
    return Child(process, stdin if request.stdin else None, OutputPipe(pipes[1][0]), OutputPipe(pipes[2][0]))


def exit_of(returncode: int, *, timed_out: bool) -> Exit:
    """Return what the caller is told, in the shell's terms."""
    if returncode < 0:
        return Exit(status=SIGNAL_BASE - returncode, signal=-returncode, timed_out=timed_out)
    return Exit(status=returncode, timed_out=timed_out)
