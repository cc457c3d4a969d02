# SPDX-License-Identifier: Apache-2.0
"""What a command's process does to itself between fork and exec: root, user, limits, fences.

All of it is looked up and made ready before the fork. The steps themselves are system calls only: another thread may
have held any lock when the process was copied. A step that fails ends the child, so nothing ever runs half-confined.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import platform
import resource
import signal
import termios
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from enclavekit_core.errors import InputError

from enclavekit_pipeline.enclave import landlock, seccomp
from enclavekit_pipeline.enclave.clients import Grant
from enclavekit_pipeline.enclave.root import Root
from enclavekit_pipeline.wire.exec_messages import Surroundings

PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 1, 22, 24, 38  # prctl(2)
SECCOMP_MODE_FILTER = 2
RESOURCES = {
    "core": resource.RLIMIT_CORE,
    "cpu": resource.RLIMIT_CPU,
    "fsize": resource.RLIMIT_FSIZE,
    "memory": resource.RLIMIT_AS,
    "nofile": resource.RLIMIT_NOFILE,
    "nproc": resource.RLIMIT_NPROC,
    "stack": resource.RLIMIT_STACK,
}
# what would lead root out of the app's root: DAC_READ_SEARCH (handles), LINUX_IMMUTABLE, SYS_MODULE, SYS_RAWIO,
# SYS_CHROOT, SYS_PTRACE, SYS_PACCT, SYS_ADMIN, SYS_BOOT, SYS_TIME, MKNOD, MAC_OVERRIDE, MAC_ADMIN, SYSLOG, PERFMON,
# BPF, CHECKPOINT_RESTORE; capabilities(7)
DROPPED_CAPABILITIES = (2, 9, 16, 17, 18, 19, 20, 21, 22, 25, 27, 32, 33, 34, 38, 39, 40)
Step = tuple[str, Callable[[], object]]
"""What it does, for the message when it fails, and how."""


class _Program(ctypes.Structure):
    """struct sock_fprog"""

    _fields_ = [("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p)]


_libc = ctypes.CDLL(None, use_errno=True)
_prctl = _libc.prctl
_prctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_ulong]


@dataclass(frozen=True)
class Account:
    """Whom a command runs as."""

    uid: int
    gid: int
    home: str
    changes: bool
    """False: it stays what the listener is."""


def find_account(request: Surroundings, grant: Grant, root: Root) -> Account:
    """Return whom the request runs as: whom it names, else whom the client's entry names. Raises InputError."""
    if user := request.user or grant.user:
        return Account(*root.find_user(user), changes=True)
    return Account(os.geteuid(), os.getegid(), "/", changes=False)


@contextlib.contextmanager
def confinement(request: Surroundings, grant: Grant, root: Root, account: Account) -> Iterator[list[Step]]:
    """Yield what the child has to do, in this order. Raises InputError if the kernel lacks what the entry demands."""
    with contextlib.ExitStack() as stack:
        directory = request.directory or "/"
        steps: list[Step] = []
        if root.path != "/":
            steps += [
                ("enter its root", lambda: os.fchdir(root.descriptor)),
                ("enter its root", lambda: os.chroot(".")),
            ]
        steps.append((f"enter {directory}", lambda: os.chdir(directory)))
        if request.terminal is not None:
            steps.append(("take its terminal", lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0)))
        steps += [(f"limit {name}", _limiting(name, value)) for name, value in request.limits.items()]
        if not grant.system:
            steps.append(("give up capabilities", drop_capabilities))
        if account.changes:
            steps += [
                ("become the user", lambda: os.setgroups([account.gid])),
                ("become the user", lambda: os.setgid(account.gid)),
                ("become the user", lambda: os.setuid(account.uid)),
            ]
        # after the change of user, which clears it; the listener is our parent until it dies
        steps.append(("be tied to the listener", _dying_with(os.getpid())))
        fenced = grant.landlock is not None or grant.seccomp is not None
        if fenced or not grant.system:
            steps.append(("refuse new privileges", lambda: _control(PR_SET_NO_NEW_PRIVS, 1)))
        if grant.landlock is not None:
            ruleset = landlock.make_ruleset(root, grant.landlock.read, grant.landlock.write)
            stack.callback(os.close, ruleset)
            steps.append(("be fenced in", lambda: _check(_libc.syscall(landlock.RESTRICT_SELF, ruleset, 0))))
        if grant.seccomp is not None:
            steps.append(("filter its system calls", _filtering(grant.seccomp)))
        yield steps


def drop_capabilities() -> None:
    for number in DROPPED_CAPABILITIES:
        if _prctl(PR_CAPBSET_DROP, number, None, 0, 0) and ctypes.get_errno() == errno.EPERM and os.geteuid() == 0:
            # EINVAL: an older kernel has no such capability; and who is not root has none to lose
            raise OSError(errno.EPERM, "capabilities")


def _limiting(name: str, value: int) -> Callable[[], object]:
    number, pair = RESOURCES[name], (value, value)
    return lambda: resource.setrlimit(number, pair)


def _dying_with(parent: int) -> Callable[[], object]:
    def tie() -> None:
        _control(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            raise OSError(errno.ESRCH, "the listener is gone")

    return tie


def _filtering(profile: str) -> Callable[[], object]:
    machine = platform.machine()
    if machine not in seccomp.ARCHITECTURES:
        raise InputError("filter the system calls of", "the command", f"there is no profile for {machine}")
    code = seccomp.build_filter(profile, machine)
    program = _Program(len(code) // seccomp.INSTRUCTION.size, code)
    address = ctypes.addressof(program)

    def install(program: _Program = program) -> None:  # which has to live as long as its address is used
        _control(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, address)

    return install


def _control(option: int, value: int, pointer: int | None = None) -> None:
    _check(_prctl(option, value, pointer, 0, 0))


def _check(result: int) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
