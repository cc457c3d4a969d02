# SPDX-License-Identifier: Apache-2.0
"""The Linux calls behind an emulated enclave that Python 3.11 has no name for, through libc.

House rule: everything that uses ctypes lives here; constants keep the kernel's names.
Source: unshare(2), mount(2), pivot_root(2), prctl(2), capabilities(7); linux/sched.h, linux/mount.h, linux/prctl.h.
"""

from __future__ import annotations

import ctypes
import errno
import os

CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_BIND = 0x1000
MS_REC = 0x4000
MS_PRIVATE = 0x40000
MNT_DETACH = 0x2

PR_SET_PDEATHSIG = 1
PR_CAPBSET_DROP = 24
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38
KEYCTL_JOIN_SESSION_KEYRING = 1
SYSTEM_CALLS = {"x86_64": {"pivot_root": 155, "keyctl": 250}, "aarch64": {"pivot_root": 41, "keyctl": 219}}

# What a virtual machine's root may do to its own kernel but nobody in a namespace may do to the host's. The kernel
# refuses them there anyway; without them in the bounding set a kernel bug behind one of them stays out of reach.
HOST_ONLY_CAPABILITIES = {
    "CAP_SYS_MODULE": 16,
    "CAP_SYS_RAWIO": 17,
    "CAP_SYS_PACCT": 20,
    "CAP_SYS_RESOURCE": 24,
    "CAP_SYS_TIME": 25,
    "CAP_MAC_OVERRIDE": 32,
    "CAP_MAC_ADMIN": 33,
    "CAP_SYSLOG": 34,
    "CAP_WAKE_ALARM": 35,
    "CAP_BLOCK_SUSPEND": 36,
    "CAP_PERFMON": 38,
    "CAP_BPF": 39,
    "CAP_CHECKPOINT_RESTORE": 40,
}

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)


def unshare(flags: int) -> None:
    """Leave the namespaces named by CLONE_NEW* `flags`. Raises OSError."""
    _check(_libc.unshare(ctypes.c_int(flags)), "unshare")


def mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    """Mount `source` at `target`. Raises OSError whose filename is the target."""
    _check(
        _libc.mount(
            os.fsencode(source), os.fsencode(target), kind.encode() or None, ctypes.c_ulong(flags), options.encode()
        ),
        target,
    )


def bind(source: str, target: str) -> None:
    """Bind-mount `source` at `target`. Raises OSError."""
    mount(source, target, "", MS_BIND)


def detach(target: str) -> None:
    """Unmount `target` and all below it as soon as nobody uses it. Raises OSError."""
    _check(_libc.umount2(os.fsencode(target), ctypes.c_int(MNT_DETACH)), target)


def pivot_root(new_root: str, put_old: str) -> None:
    """Make `new_root` the root; the old one ends up on `put_old`. Raises OSError."""
    _check(_libc.syscall(_number("pivot_root"), os.fsencode(new_root), os.fsencode(put_old)), new_root)


def _number(call: str) -> ctypes.c_long:
    numbers = SYSTEM_CALLS.get(os.uname().machine)
    if numbers is None:
        raise OSError(errno.ENOSYS, f"this architecture's number of {call} is not known")
    return ctypes.c_long(numbers[call])


def leave_session_keyring() -> None:
    """Start with an empty session keyring instead of that of the user who runs the emulator. Raises OSError."""
    try:
        _check(_libc.syscall(_number("keyctl"), ctypes.c_long(KEYCTL_JOIN_SESSION_KEYRING), None), "keyctl")
    except OSError as exc:
        if exc.errno not in (errno.ENOSYS, errno.EPERM):  # a kernel without keys, or a container that forbids them all
            raise


def prctl(option: int, value: int) -> None:
    """Call prctl with one argument. Raises OSError."""
    zero = ctypes.c_ulong(0)
    _check(_libc.prctl(ctypes.c_int(option), ctypes.c_ulong(value), zero, zero, zero), "prctl")


def set_host_name(name: str) -> None:
    """Set the host name of the UTS namespace. Raises OSError."""
    raw = name.encode()
    _check(_libc.sethostname(raw, ctypes.c_size_t(len(raw))), "sethostname")


def drop_host_only_capabilities() -> None:
    """Take HOST_ONLY_CAPABILITIES out of the bounding set; the next exec loses them. Raises OSError."""
    for number in HOST_ONLY_CAPABILITIES.values():
        try:
            prctl(PR_CAPBSET_DROP, number)
        except OSError as exc:
            if exc.errno != errno.EINVAL:  # an older kernel that does not know this one
                raise
