# SPDX-License-Identifier: Apache-2.0
"""The filters, run here as the kernel runs them: an interpreter for the few instructions that they use."""

import errno
import os
import platform
import socket
import struct

import pytest
from enclavekit_core import seccomp
from enclavekit_core.seccomp import ALLOW, ARCHITECTURES, ERROR, KILL_PROCESS, PROFILES, build_filter

X86 = "x86_64"
AUDIT = {name: arch.audit for name, arch in ARCHITECTURES.items()}
EPERM, NOSYS, NOFAMILY = (ERROR | number for number in (errno.EPERM, errno.ENOSYS, errno.EAFNOSUPPORT))


def decide(profile, machine, number, *arguments, audit=None):
    """Run the filter on one call; return its verdict."""
    data = struct.pack("=IIQ", number, AUDIT[machine] if audit is None else audit, 0)
    data += struct.pack("=6Q", *arguments, *[0] * (6 - len(arguments)))
    program = list(seccomp.INSTRUCTION.iter_unpack(build_filter(profile, machine)))
    at = accumulator = 0
    while True:
        code, if_true, if_false, operand = program[at]
        at += 1
        if code == 0x20:
            (accumulator,) = struct.unpack_from("=I", data, operand)
        elif code == 0x54:
            accumulator &= operand
        elif code == 0x06:
            return operand
        else:
            true = {0x15: accumulator == operand, 0x35: accumulator >= operand, 0x45: bool(accumulator & operand)}[code]
            at += if_true if true else if_false


@pytest.mark.parametrize("machine", ARCHITECTURES)
@pytest.mark.parametrize("profile", PROFILES)
def test_denied_calls_are_denied_and_no_others(profile, machine):
    column = ARCHITECTURES[machine].column
    denied = {numbers[column] for numbers in seccomp.DENIED.values()} - {None}
    for number in range(512):
        expected = EPERM if number in denied else NOSYS if number == seccomp.CLONE3[column] else ALLOW
        if profile == "no-network" and number == seccomp.SOCKET[column]:
            expected = NOFAMILY
        assert decide(profile, machine, number) == expected, number


@pytest.mark.parametrize("machine", ARCHITECTURES)
@pytest.mark.parametrize(
    ("call", "arguments", "verdict"),
    [
        (seccomp.CLONE, (0x11,), ALLOW),  # fork
        (seccomp.CLONE, (0x3D0F00,), ALLOW),  # a thread
        (seccomp.CLONE, (0x10000011,), EPERM),  # a user namespace
        (seccomp.CLONE, (0x00020011,), EPERM),
        (seccomp.IOCTL, (0, 0x5401), ALLOW),
        (seccomp.IOCTL, (0, 0x5412), EPERM),
        (seccomp.IOCTL, (0, 0x5412 | 1 << 32), EPERM),  # the kernel looks at 32 bits only
        (seccomp.MKNODAT, (0, 0, 0o100644), ALLOW),
        (seccomp.MKNODAT, (0, 0, 0o010644), ALLOW),
        (seccomp.MKNODAT, (0, 0, 0o020644), EPERM),
        (seccomp.MKNODAT, (0, 0, 0o060644), EPERM),
        (seccomp.SOCKET, (socket.AF_INET,), ALLOW),
    ],
)
def test_arguments_decide(machine, call, arguments, verdict):
    assert decide("default", machine, call[ARCHITECTURES[machine].column], *arguments) == verdict


def test_no_network_leaves_unix_sockets():
    assert decide("no-network", X86, 41, socket.AF_UNIX) == ALLOW
    for family in (socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK, socket.AF_PACKET, socket.AF_VSOCK):
        assert decide("no-network", X86, 41, family) == NOFAMILY


def test_other_architectures_and_numberings_do_not_get_around_it():
    assert decide("default", X86, 0, audit=0x40000003) == KILL_PROCESS  # i386
    assert decide("default", X86, 0x40000000 | 165) == NOSYS  # x32


def test_numbers_are_this_machine_s():
    """Calls that Python makes by name, made by number: the tables name what they mean to name."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    column = ARCHITECTURES[platform.machine()].column
    assert libc.syscall(seccomp.DENIED["setns"][column], -1, 0) == -1
    assert ctypes.get_errno() == errno.EBADF
    descriptor = libc.syscall(seccomp.SOCKET[column], socket.AF_UNIX, socket.SOCK_STREAM, 0)
    assert socket.socket(fileno=descriptor).family is socket.AF_UNIX
    assert libc.syscall(seccomp.IOCTL[column], os.open("/dev/null", os.O_RDONLY), 0x5401, None) == -1
    assert ctypes.get_errno() == errno.ENOTTY
