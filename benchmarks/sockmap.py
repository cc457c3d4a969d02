# SPDX-License-Identifier: Apache-2.0
"""Sockets joined in the kernel by a BPF sockhash: what bench_sockmap measures. No part of the proxy.

A verdict program runs for each buffer that a socket receives, and either redirects it to another socket or lets it
through to the process. Source: linux/bpf.h, bpf(2), Documentation/bpf/map_sockmap.rst.

The virtual machine of bench_sockmap runs this file too: it imports nothing but the standard library.
"""

from __future__ import annotations

import ctypes
import os
import platform
import select
import socket
import struct
from collections.abc import Callable

BPF_SYSCALL = {"x86_64": 321, "aarch64": 280}
MAP_CREATE, MAP_UPDATE, PROG_LOAD, PROG_ATTACH = 0, 2, 5, 8
SOCKHASH, SK_SKB, STREAM_VERDICT = 18, 14, 5  # map type, program type, attach type
SK_REDIRECT_HASH = 72  # helper
SK_PASS = 1
ATTR_BYTES = 144  # union bpf_attr; zeros beyond what a kernel knows are fine
INSTRUCTION = struct.Struct("<BBhi")  # opcode, registers (source in the high half), offset, immediate
KEY = bytes(8)  # of the only socket in a map. Not a cookie: for Unix sockets a program sees the sender's
MAX_TAKEN = 256 * 2**20  # enough to tell a bound from none
STALLED_S = 2.0  # no byte taken for so long: the sender waits
PIECE = bytes(2**16)
WAYS = ("no program", "let through", "redirected")

Pair = tuple[socket.socket, socket.socket]


def instruction(code: int, target: int = 0, source: int = 0, offset: int = 0, immediate: int = 0) -> bytes:
    return INSTRUCTION.pack(code, source << 4 | target, offset, immediate)


LET_THROUGH = instruction(0xB7, immediate=SK_PASS) + instruction(0x95)


def redirect_to(map_fd: int) -> bytes:
    """Return the program that sends every buffer to the one socket in a map; r1 is its context throughout."""
    return b"".join(
        (
            instruction(0x7A, 10, 0, -8),  # key on the stack = KEY
            instruction(0x18, 2, 1, 0, map_fd),  # r2 = map, in two halves
            instruction(0),
            instruction(0xBF, 3, 10),
            instruction(0x07, 3, immediate=-8),  # r3 = address of the key
            instruction(0xB7, 4),  # r4 = flags: the egress side
            instruction(0x85, immediate=SK_REDIRECT_HASH),
            instruction(0x95),
        )
    )


class Direction:
    """What `source` receives from now on goes to `sink`; without one, a program looks at it and lets it through.

    Raises OSError where kernel or privileges do not allow it.
    """

    def __init__(self, source: socket.socket, sink: socket.socket | None = None) -> None:
        # of the sink's map no program belongs: what the sink receives is its own affair
        self._sinks = bpf(MAP_CREATE, struct.pack("<IIII", SOCKHASH, len(KEY), 4, 1))
        self._sources = bpf(MAP_CREATE, struct.pack("<IIII", SOCKHASH, len(KEY), 4, 1))
        text = LET_THROUGH if sink is None else redirect_to(self._sinks)
        code, licence = ctypes.create_string_buffer(text), ctypes.create_string_buffer(b"GPL")
        count = len(text) // INSTRUCTION.size
        program = bpf(PROG_LOAD, struct.pack("<IIQQ", SK_SKB, count, ctypes.addressof(code), ctypes.addressof(licence)))
        bpf(PROG_ATTACH, struct.pack("<III", self._sources, program, STREAM_VERDICT))
        os.close(program)  # the map holds it
        if sink is not None:
            put(self._sinks, sink)
        put(self._sources, source)

    def close(self) -> None:
        os.close(self._sources)
        os.close(self._sinks)


def put(map_fd: int, sock: socket.socket) -> None:
    key = ctypes.create_string_buffer(KEY, len(KEY))
    value = ctypes.create_string_buffer(struct.pack("<I", sock.fileno()), 4)
    bpf(MAP_UPDATE, struct.pack("<IIQQQ", map_fd, 0, ctypes.addressof(key), ctypes.addressof(value), 0))


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


def tcp_pair() -> Pair:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return socket.create_connection(listener.getsockname()), listener.accept()[0]


def taken_unread(sender: socket.socket) -> int:
    """Return how many bytes a sender is rid of, up to MAX_TAKEN, if the other end reads none."""
    sender.setblocking(False)
    sent = 0
    while sent < MAX_TAKEN and select.select([], [sender], [], STALLED_S)[1]:
        try:
            sent += sender.send(PIECE)
        except BlockingIOError:
            pass
    return sent


def taken_each_way(pair: Callable[[], Pair]) -> list[int]:
    """Return `taken_unread` of a connection that `pair` makes, for each of WAYS; the sink is TCP, and nobody reads."""
    found = []
    for way in WAYS:
        (sender, source), (sink, reader) = pair(), tcp_pair()
        with sender, source, sink, reader:
            joined = None if way == "no program" else Direction(source, sink if way == "redirected" else None)
            found.append(taken_unread(sender))
        if joined is not None:
            joined.close()
    return found
