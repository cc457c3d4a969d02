# SPDX-License-Identifier: Apache-2.0
"""The system calls that Python does not have. Each raises OSError."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import socket
import struct
from collections.abc import Iterable

from enclavekit_core.errors import DeviceError

RB_AUTOBOOT = 0x01234567  # reboot(2)
RB_POWER_OFF = 0x4321FEDC
PR_SET_CHILD_SUBREAPER = 36  # prctl(2)
PR_GET_SECCOMP, PR_SET_SECCOMP, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 21, 22, 24, 38
SECCOMP_MODE_FILTER = 2
INSTRUCTION_BYTES = 8  # struct sock_filter
ADJ_OFFSET_SINGLESHOT = 0x8001  # adjtimex(2)
CLONE_NEWNS, CLONE_NEWNET = 0x00020000, 0x40000000  # unshare(2)
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1  # netdevice(7)
IFREQ = struct.Struct("16sh22x")  # struct ifreq: name, flags, padding to 40 bytes
FINIT_MODULE = {"x86_64": 313, "aarch64": 273}  # asm/unistd.h; glibc has no wrapper

_libc = ctypes.CDLL(None, use_errno=True)


class _Program(ctypes.Structure):
    """struct sock_fprog"""

    _fields_ = [("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p)]


class _Timex(ctypes.Structure):
    """The front of struct timex, and room for the rest."""

    _fields_ = [("modes", ctypes.c_uint), ("offset", ctypes.c_long), ("rest", ctypes.c_byte * 256)]


def _check(result: int) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def mount(source: str, target: str, fstype: str, flags: int, data: str = "") -> None:
    """mount(2)."""
    _check(
        _libc.mount(
            os.fsencode(source), os.fsencode(target), os.fsencode(fstype), ctypes.c_ulong(flags), os.fsencode(data)
        )
    )


def slew_clock(offset_s: float) -> None:
    """Have the kernel close a difference of at most half a second bit by bit. Source: adjtimex(2)."""
    change = _Timex()
    change.modes, change.offset = ADJ_OFFSET_SINGLESHOT, int(offset_s * 1_000_000)
    _check(min(0, _libc.adjtimex(ctypes.byref(change))))


def unmount(target: str) -> None:
    """umount2(2)."""
    _check(_libc.umount2(os.fsencode(target), ctypes.c_int(0)))


def reboot(command: int) -> None:
    """reboot(2); does not return where it works. In a PID namespace it kills that namespace's init."""
    _check(_libc.reboot(ctypes.c_int(command)))


def finit_module(fd: int) -> None:
    """Load the kernel module behind `fd`, without parameters."""
    machine = os.uname().machine
    number = FINIT_MODULE.get(machine)
    if number is None:
        raise DeviceError("load a module on", machine, "the number of finit_module is not known")
    _check(_libc.syscall(ctypes.c_long(number), ctypes.c_int(fd), b"", ctypes.c_int(0)))


def become_subreaper() -> None:
    """Have orphaned descendants handed to this process, as PID 1 has anyway."""
    _check(_libc.prctl(PR_SET_CHILD_SUBREAPER, ctypes.c_ulong(1), ctypes.c_ulong(0), ctypes.c_ulong(0), 0))


def _prctl(option: int, first: int, second: int = 0) -> int:
    none = ctypes.c_ulong(0)
    return int(_libc.prctl(option, ctypes.c_ulong(first), ctypes.c_ulong(second), none, none))


def unshare(flags: int) -> None:
    """unshare(2)."""
    _check(_libc.unshare(ctypes.c_int(flags)))


def refuse_new_privileges() -> None:
    """Have exec give nobody below more rights than this process has."""
    _check(_prctl(PR_SET_NO_NEW_PRIVS, 1))


def drop_capabilities(numbers: Iterable[int]) -> None:
    """Take capabilities out of the bounding set, which exec obeys; those that the kernel has not are passed."""
    for number in numbers:
        if _prctl(PR_CAPBSET_DROP, number) and ctypes.get_errno() != errno.EINVAL:
            _check(-1)


def filters_calls() -> bool:
    """Say whether the kernel has seccomp filters."""
    # without a program it fails with EFAULT where there are filters, with EINVAL where there are none
    return _prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER) < 0 and ctypes.get_errno() == errno.EFAULT


def filter_calls(code: bytes) -> None:
    """Put a seccomp program, of struct sock_filter, on this process and all below."""
    program = _Program(len(code) // INSTRUCTION_BYTES, code)
    _check(_prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.addressof(program)))


def bring_loopback_up() -> None:
    """Set IFF_UP on lo."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        name, flags = IFREQ.unpack(fcntl.ioctl(sock, SIOCGIFFLAGS, IFREQ.pack(b"lo", 0)))
        if not flags & IFF_UP:
            fcntl.ioctl(sock, SIOCSIFFLAGS, IFREQ.pack(name, flags | IFF_UP))
