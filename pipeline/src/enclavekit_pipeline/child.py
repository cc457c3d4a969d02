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

from enclavekit_pipeline.requests import ExecRequest, Exit
from enclavekit_pipeline.root import Root

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
SIGNAL_BASE = 128


@dataclass
class Child:
    """A running process and our ends of its pipes; `stdin` is None where it reads /dev/null."""

    process: subprocess.Popen[bytes]
    stdin: int | None
    stdout: int
    stderr: int

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Signal the whole session's process group; harmless once it has ended."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, number)


def spawn(request: ExecRequest, root: Root) -> Child:
    """Start the command in `root`. Raises InputError with the cause the command could not be started for."""
    uid, gid, home = root.find_user(request.user) if request.user else (os.geteuid(), os.getegid(), "/")
    environment = {"PATH": DEFAULT_PATH, "HOME": home, **request.environment}
    directory = request.directory or "/"

    def enter() -> None:
        # runs in the child between fork and exec: system calls only
        if root.path != "/":
            os.fchdir(root.descriptor)
            os.chroot(".")
        os.chdir(directory)
        if request.user:
            os.setgroups([gid])
            os.setgid(gid)
            os.setuid(uid)

    pipes = [os.pipe2(os.O_CLOEXEC) for _ in range(3)]
    (in_read, in_write), (out_read, out_write), (err_read, err_write) = pipes
    try:
        process = subprocess.Popen(
            request.argv,
            stdin=in_read if request.stdin else subprocess.DEVNULL,
            stdout=out_write,
            stderr=err_write,
            env=environment,
            start_new_session=True,
            preexec_fn=enter,
        )
    except (OSError, subprocess.SubprocessError) as exc:
        for descriptor in (in_write, out_read, err_read):
            os.close(descriptor)
        cause = f"cannot enter {directory}, or become the user" if not isinstance(exc, OSError) else describe_cause(exc)
        raise InputError("run", repr(request.argv[0]), cause) from exc
    finally:
        for descriptor in (in_read, out_write, err_write):
            os.close(descriptor)
    if not request.stdin:
        os.close(in_write)
    return Child(process, in_write if request.stdin else None, out_read, err_read)


def exit_of(returncode: int, *, timed_out: bool) -> Exit:
    """Return what the caller is told, in the shell's terms."""
    if returncode < 0:
        return Exit(status=SIGNAL_BASE - returncode, signal=-returncode, timed_out=timed_out)
    return Exit(status=returncode, timed_out=timed_out)
