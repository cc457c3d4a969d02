# SPDX-License-Identifier: Apache-2.0
"""The system calls that Python does not have. Each raises OSError."""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct

from enclavekit_core.errors import DeviceError

RB_AUTOBOOT = 0x01234567  # reboot(2)
RB_POWER_OFF = 0x4321FEDC
PR_SET_CHILD_SUBREAPER = 36  # prctl(2)
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1  # netdevice(7)
IFREQ = struct.Struct("16sh22x")  # struct ifreq: name, flags, padding to 40 bytes
FINIT_MODULE = {"x86_64": 313, "aarch64": 273}  # asm/unistd.h; glibc has no wrapper

_libc = ctypes.CDLL(None, use_errno=True)


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


def bring_loopback_up() -> None:
    """Set IFF_UP on lo."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        name, flags = IFREQ.unpack(fcntl.ioctl(sock, SIOCGIFFLAGS, IFREQ.pack(b"lo", 0)))
        if not flags & IFF_UP:
            fcntl.ioctl(sock, SIOCSIFFLAGS, IFREQ.pack(name, flags | IFF_UP))
