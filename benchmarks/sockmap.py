# SPDX-License-Identifier: Apache-2.0
"""Two TCP sockets joined in the kernel by a BPF sockhash: what bench_sockmap measures. No part of the proxy.

The program that runs for each buffer received looks up the socket's cookie, under which the map has the other socket,
and redirects the buffer there. Source: linux/bpf.h, bpf(2), Documentation/bpf/map_sockmap.rst.
"""

from __future__ import annotations

import ctypes
import os
import platform
import socket
import struct

BPF_SYSCALL = {"x86_64": 321, "aarch64": 280}
MAP_CREATE, MAP_UPDATE, PROG_LOAD, PROG_ATTACH = 0, 2, 5, 8
SOCKHASH, SK_SKB, STREAM_VERDICT = 18, 14, 5  # map type, program type, attach type
GET_SOCKET_COOKIE, SK_REDIRECT_HASH = 46, 72  # helpers
SO_COOKIE = 57
ATTR_BYTES = 144  # union bpf_attr; zeros beyond what a kernel knows are fine
INSTRUCTION = struct.Struct("<BBhi")  # opcode, registers (source in the high half), offset, immediate


def instruction(code: int, target: int = 0, source: int = 0, offset: int = 0, immediate: int = 0) -> bytes:
    return INSTRUCTION.pack(code, source << 4 | target, offset, immediate)


def assemble(map_fd: int) -> bytes:
    return b"".join(
        (
            instruction(0xBF, 6, 1),  # r6 = context
            instruction(0x85, immediate=GET_SOCKET_COOKIE),
            instruction(0x7B, 10, 0, -8),  # key on the stack = r0
            instruction(0xBF, 1, 6),
            instruction(0x18, 2, 1, 0, map_fd),  # r2 = map, in two halves
            instruction(0),
            instruction(0xBF, 3, 10),
            instruction(0x07, 3, immediate=-8),  # r3 = address of the key
            instruction(0xB7, 4),  # r4 = flags: the egress side
            instruction(0x85, immediate=SK_REDIRECT_HASH),
            instruction(0x95),
        )
    )


class Sockmap:
    """Raises OSError where kernel or privileges do not allow it."""

    def __init__(self, entries: int = 64) -> None:
        self._map = bpf(MAP_CREATE, struct.pack("<IIII", SOCKHASH, 8, 4, entries))
        code, licence = ctypes.create_string_buffer(assemble(self._map)), ctypes.create_string_buffer(b"GPL")
        head = struct.pack("<IIQQ", SK_SKB, (len(code) - 1) // 8, ctypes.addressof(code), ctypes.addressof(licence))
        program = bpf(PROG_LOAD, head)
        bpf(PROG_ATTACH, struct.pack("<III", self._map, program, STREAM_VERDICT))
        os.close(program)  # the map holds it

    def join(self, one: socket.socket, other: socket.socket) -> None:
        for key_of, value in ((one, other), (other, one)):
            key = ctypes.create_string_buffer(key_of.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8), 8)
            descriptor = ctypes.create_string_buffer(struct.pack("<I", value.fileno()), 4)
            addresses = ctypes.addressof(key), ctypes.addressof(descriptor)
            bpf(MAP_UPDATE, struct.pack("<IIQQQ", self._map, 0, *addresses, 0))

    def close(self) -> None:
        os.close(self._map)


def bpf(command: int, attributes: bytes) -> int:
    number = BPF_SYSCALL.get(platform.machine())
    if number is None:
        raise OSError(38, "no bpf(2) known for this machine")
    buffer = ctypes.create_string_buffer(attributes, ATTR_BYTES)
    libc = ctypes.CDLL(None, use_errno=True)
    result = int(libc.syscall(number, command, buffer, ATTR_BYTES))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result
