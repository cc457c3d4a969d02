# SPDX-License-Identifier: Apache-2.0
"""Seccomp profiles as programs for the kernel's classic BPF: what a command or a service may not ask the kernel
for. Pure.

A deny-list, small on purpose: it closes what leads from the app's root to the framework or the kernel, and lets
everything else be. The kernel runs the program on `struct seccomp_data`: number u32, architecture u32, instruction
pointer u64, then six arguments of u64. Sources: seccomp(2), linux/bpf_common.h, asm/unistd of both architectures.
"""

from __future__ import annotations

import errno
import struct
from dataclasses import dataclass

INSTRUCTION = struct.Struct("=HBBI")  # code, jump if true, jump if false, operand: struct sock_filter
LOAD, JUMP_IF_EQUAL, JUMP_IF_NOT_LESS, JUMP_IF_ANY_BIT, AND, RETURN = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06
NUMBER_AT, ARCHITECTURE_AT, ARGUMENTS_AT = 0, 4, 16  # the low half of each argument comes first on both
KILL_PROCESS, ERROR, ALLOW = 0x80000000, 0x00050000, 0x7FFF0000
X32_BIT = 0x40000000  # the same calls of x86-64 under other numbers
CLONE_NEW = 0x7E020000  # namespaces: mount, cgroup, UTS, IPC, user, PID, network
FILE_TYPE, CHARACTER_DEVICE, BLOCK_DEVICE = 0o170000, 0o020000, 0o060000
TIOCSTI, TIOCLINUX = 0x5412, 0x541C  # typing for somebody else
AF_UNIX = 1

# name -> (x86-64, aarch64); None where the architecture has no such call
DENIED: dict[str, tuple[int | None, int | None]] = {
    # other file systems and roots
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51), "open_tree": (428, 428),
    "move_mount": (429, 429), "fsopen": (430, 430), "fsconfig": (431, 431), "fsmount": (432, 432),
    "fspick": (433, 433), "mount_setattr": (442, 442), "open_by_handle_at": (304, 265),
    "name_to_handle_at": (303, 264), "quotactl": (179, 60), "quotactl_fd": (443, 443),
    # namespaces
    "unshare": (272, 97), "setns": (308, 268),
    # other processes
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272),
    "pidfd_getfd": (438, 438), "process_madvise": (440, 440),
    # the kernel and the machine
    "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106), "kexec_load": (246, 104),
    "kexec_file_load": (320, 294), "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427),
    "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219), "syslog": (103, 116), "acct": (163, 89),
    "reboot": (169, 142), "swapon": (167, 224), "swapoff": (168, 225), "iopl": (172, None), "ioperm": (173, None),
    "settimeofday": (164, 170), "clock_settime": (227, 112), "clock_adjtime": (305, 266), "adjtimex": (159, 171),
    "sethostname": (170, 161), "setdomainname": (171, 162), "vhangup": (153, 58),
}  # fmt: skip
CLONE, CLONE3, IOCTL, MKNOD, MKNODAT, SOCKET = (56, 220), (435, 435), (16, 29), (133, None), (259, 33), (41, 198)


@dataclass(frozen=True)
class Architecture:
    column: int
    """Of the tables above."""
    audit: int
    """Its name in struct seccomp_data: AUDIT_ARCH_*."""


ARCHITECTURES = {"x86_64": Architecture(0, 0xC000003E), "aarch64": Architecture(1, 0xC00000B7)}
PROFILES = ("default", "no-network")
"""default: the deny-list. no-network: that, and no sockets but Unix ones."""


def build_filter(profile: str, machine: str) -> bytes:
    """Return the program of `profile`, of PROFILES, for `machine`, of ARCHITECTURES."""
    arch = ARCHITECTURES[machine]
    program = [
        *(_load(ARCHITECTURE_AT), _jump(JUMP_IF_EQUAL, arch.audit, 1, 0), _return(KILL_PROCESS)),
        _load(NUMBER_AT),
    ]
    if machine == "x86_64":
        program += [_jump(JUMP_IF_NOT_LESS, X32_BIT, 0, 1), _return(ERROR | errno.ENOSYS)]
    for numbers in DENIED.values():
        program += _on(numbers[arch.column], [_return(ERROR | errno.EPERM)])
    # its flags are in memory, which a filter cannot read: who gets ENOSYS uses clone instead, as C libraries do
    program += _on(CLONE3[arch.column], [_return(ERROR | errno.ENOSYS)])
    program += _on(CLONE[arch.column], [_argument(0), *_deny_if(JUMP_IF_ANY_BIT, CLONE_NEW), _return(ALLOW)])
    for numbers, index in ((MKNOD, 1), (MKNODAT, 2)):
        kind = [_argument(index), _op(AND, FILE_TYPE)]
        kind += _deny_if(JUMP_IF_EQUAL, CHARACTER_DEVICE) + _deny_if(JUMP_IF_EQUAL, BLOCK_DEVICE)
        program += _on(numbers[arch.column], [*kind, _return(ALLOW)])
    typing = _deny_if(JUMP_IF_EQUAL, TIOCSTI) + _deny_if(JUMP_IF_EQUAL, TIOCLINUX)
    program += _on(IOCTL[arch.column], [_argument(1), *typing, _return(ALLOW)])
    if profile == "no-network":
        only_unix = [_argument(0), _jump(JUMP_IF_EQUAL, AF_UNIX, 1, 0), _return(ERROR | errno.EAFNOSUPPORT)]
        program += _on(SOCKET[arch.column], [*only_unix, _return(ALLOW)])
    return b"".join([*program, _return(ALLOW)])


def _on(number: int | None, body: list[bytes]) -> list[bytes]:
    """Run `body`, which must not fall through, if the call is `number`."""
    return [] if number is None else [_jump(JUMP_IF_EQUAL, number, 0, len(body)), *body]


def _deny_if(test: int, operand: int) -> list[bytes]:
    return [_jump(test, operand, 0, 1), _return(ERROR | errno.EPERM)]


def _op(code: int, operand: int) -> bytes:
    return INSTRUCTION.pack(code, 0, 0, operand)


def _load(offset: int) -> bytes:
    return _op(LOAD, offset)


def _argument(index: int) -> bytes:
    return _load(ARGUMENTS_AT + 8 * index)


def _jump(test: int, operand: int, if_true: int, if_false: int) -> bytes:
    return INSTRUCTION.pack(test, if_true, if_false, operand)


def _return(value: int) -> bytes:
    return _op(RETURN, value)
