# SPDX-License-Identifier: Apache-2.0
"""What starts commands: a process of a few megabytes beside the listener, since the time of a fork is that of copying
the tables of all memory; the listener's own takes several times as long, and everybody waits for it. It forks in
advance: one child always waits for the next command.

Run as a script, this file is that process: Python's standard library only, no site packages. The commands are the
listener's children all the same (clone(2), CLONE_PARENT), so that nobody but the listener waits for them. Where it
cannot run, the listener forks itself. Imported, it holds what a child does between fork and exec, the same
in both cases.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import gc
import marshal
import os
import resource
import signal
import socket
import sys
import termios
from collections.abc import Callable
from typing import Any, NoReturn

CLONE_PARENT = 0x8000
SYS_CLONE = {"x86_64": 56, "aarch64": 220}
PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 1, 22, 24, 38  # prctl(2)
SECCOMP_MODE_FILTER = 2
INSTRUCTION_BYTES = 8  # struct sock_filter
LANDLOCK_RESTRICT_SELF = 446
STANDARD, REPORT = (0, 1, 2), 3  # the first descriptors of an order; what follows is for its steps
MAX_DESCRIPTORS = 16  # the first four, a group for each of three controllers, a root, a set of rules
MAX_ORDER_BYTES = 256 * 1024  # a request has 64 KiB, and PATH is tried word by word
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # the listener's affair, not ours
CANNOT_START = 127

Step = tuple[str, str, Any]
"""What it does, for the message when it fails; its operation; the argument of that."""
Order = tuple[list[bytes], list[bytes], dict[bytes, bytes], list[Step]]
"""Paths to try in turn, words, environment, steps."""

_libc = ctypes.CDLL(None, use_errno=True)
_prctl = _libc.prctl
_prctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_ulong]


class _Program(ctypes.Structure):
    """struct sock_fprog"""

    _fields_ = [("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p)]


def _check(result: int) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _limit(values: tuple[int, int]) -> None:
    resource.setrlimit(values[0], (values[1], values[1]))


def _drop_capabilities(numbers: list[int]) -> None:
    for number in numbers:
        # EINVAL: an older kernel has no such capability; and who is not root has none to lose
        if _prctl(PR_CAPBSET_DROP, number, None, 0, 0) and ctypes.get_errno() == errno.EPERM and os.geteuid() == 0:
            _check(-1)


def _die_with(parent: int) -> None:
    _check(_prctl(PR_SET_PDEATHSIG, signal.SIGKILL, None, 0, 0))
    if os.getppid() != parent:
        raise OSError(errno.ESRCH, os.strerror(errno.ESRCH))


def _filter(code: bytes) -> None:
    program = _Program(len(code) // INSTRUCTION_BYTES, code)
    _check(_prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.addressof(program), 0, 0))


# those with a descriptor get it by its place in the order
OPERATIONS: dict[str, Callable[..., object]] = {
    "join": lambda group: os.write(group, b"0"),
    "enter": os.fchdir,
    "chroot": os.chroot,
    "chdir": os.chdir,
    "terminal": lambda _: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    "limit": _limit,
    "capabilities": _drop_capabilities,
    "groups": lambda gid: os.setgroups([gid]),
    "group": os.setgid,
    "user": os.setuid,
    "die-with": _die_with,
    "privileges": lambda _: _check(_prctl(PR_SET_NO_NEW_PRIVS, 1, None, 0, 0)),
    "landlock": lambda ruleset: _check(_libc.syscall(LANDLOCK_RESTRICT_SELF, ruleset, 0)),
    "seccomp": _filter,
}
TAKES_DESCRIPTOR = frozenset({"join", "enter", "landlock"})


def shed() -> None:
    """Leave nothing that a command would inherit of this process: signals that are ignored or blocked, descriptors."""
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        # Python ignores some, and whoever started us may have ignored any: a shell does so with INT and QUIT of what it
        # runs in the background
        if number in STOPPING or signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, _do_nothing)  # exec(2) gives back its default to what is caught only
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for opened in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            os.set_inheritable(int(opened), False)


def _do_nothing(*_: object) -> None:
    """Take a signal: a terminal's or an init's wish to stop is the listener's affair; we end when it is gone."""


def become(order: Order, descriptors: list[int]) -> NoReturn:
    """Become the command, in a session of its own, child of a process that has called `shed`; a failure is told on the
    report, which closes by exec otherwise.

    System calls only, and few: each touches memory that is then copied. In the listener another thread may have held
    any lock.
    """
    paths, argv, environment, steps = order
    name, failed = "", 0
    try:
        for target in STANDARD:
            os.dup2(descriptors[target], target)  # all others close on exec
        for step, operation, argument in steps:
            name = step
            OPERATIONS[operation](descriptors[argument] if operation in TAKES_DESCRIPTOR else argument)
        name = ""
        for path in paths:
            try:
                os.execve(path, argv, environment)  # noqa: S606 - no shell is the point
            except OSError as exc:
                if not failed or exc.errno not in (errno.ENOENT, errno.ENOTDIR):
                    failed = exc.errno or errno.EIO
    except OSError as exc:
        failed = exc.errno or errno.EIO
    except BaseException:
        failed = errno.EINVAL
    finally:
        os.write(descriptors[REPORT], marshal.dumps((name, failed)))
        os._exit(CANNOT_START)


def serve(orders: socket.socket) -> None:
    """Keep one child ready for the next order until the listener is gone.

    The child tells its number first, so that whoever orders knows whom; where there can be none, the negative error
    number stands there, and nothing is tried until that has been heard.
    """
    number = SYS_CLONE[os.uname().machine]
    flags = ctypes.c_ulong(CLONE_PARENT | signal.SIGCHLD)
    none = ctypes.c_ulong(0)
    gone = False
    while not gone:
        read, write = os.pipe2(os.O_CLOEXEC)
        pid = int(_libc.syscall(number, flags, none, none, none, none))
        if pid == 0:
            await_order(orders)
        os.close(write)
        if pid > 0:
            os.read(read, 1)  # ends when the child has become a command, or has ended
            gone = _is_gone(orders)
        else:
            orders.send(marshal.dumps(-ctypes.get_errno()))
            gone = not orders.recv(1)
        os.close(read)


def await_order(orders: socket.socket) -> NoReturn:
    """Be the child: wait for an order, become what is ordered."""
    try:
        os.setsid()
        for target in STANDARD:  # changes nothing; memory that is touched now is not copied while somebody waits
            os.dup2(target, target)
        os.chdir(os.curdir)
        orders.send(marshal.dumps(os.getpid()))
        data, descriptors, _, _ = socket.recv_fds(orders, MAX_ORDER_BYTES, MAX_DESCRIPTORS)
        for descriptor in descriptors:
            os.set_inheritable(descriptor, False)
        if data:
            become(marshal.loads(data), descriptors)  # noqa: S302 - from our own listener, over our own pair
    finally:
        os._exit(0)


def _is_gone(orders: socket.socket) -> bool:
    try:
        return not orders.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False


if __name__ == "__main__":
    shed()
    gc.disable()  # there is nothing to collect, and looking for it would copy all memory in each child
    gc.freeze()
    with contextlib.suppress(ConnectionError, BrokenPipeError):
        serve(socket.socket(fileno=int(sys.argv[1])))
