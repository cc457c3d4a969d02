# SPDX-License-Identifier: Apache-2.0
"""The ends of the streams that bench_relay sends through proxies; as a program, the server.

Two kinds of bulk. Ends that copy do what programs do, and cost more processor time than a proxy that splices. Ends that
share cost next to nothing, so that the proxy is what is measured: the same pages are sent over and over by tee(2) and
splice(2), and what arrives is counted and dropped in the kernel. Ends that hash are for what is not measured: whether
every byte arrives.

A client sends one byte, of SERVES, and a length; the server answers with that byte, so that the whole way is there.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import os
import socket
import struct
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass

PIECE_BYTES = 1024 * 1024  # the most that a pipe has without privileges: pipe-max-size, pipe(7)
COPY_BYTES = 256 * 1024
HASH_TIMEOUT_S = 60.0
REQUEST = struct.Struct(">cQ")  # what to do, how many bytes
COUNT = struct.Struct(">Q")
DIGEST_BYTES = hashlib.sha256().digest_size
LIBC = ctypes.CDLL(None, use_errno=True)


# copying


def send_copied(sock: socket.socket, total: int) -> None:
    chunk = memoryview(os.urandom(COPY_BYTES))
    while total:
        total -= sock.send(chunk[: min(total, COPY_BYTES)])


def count_copied(sock: socket.socket, total: int) -> int:
    """Return how many bytes arrive, up to `total`; fewer if the stream ends."""
    buffer, left = memoryview(bytearray(COPY_BYTES)), total
    while left and (count := sock.recv_into(buffer[: min(left, COPY_BYTES)])):
        left -= count
    return total - left


# sharing


def send_shared(sock: socket.socket, total: int) -> None:
    source, piece = make_pipe()
    again, into = make_pipe()
    try:
        fill_pipe(piece)
        while total:
            taken = LIBC.tee(source, into, min(total, PIECE_BYTES), 0)
            if taken <= 0:
                raise OSError(ctypes.get_errno(), "cannot tee")
            total -= taken
            while taken:
                taken -= os.splice(again, sock.fileno(), taken)
    finally:
        for descriptor in (source, piece, again, into):
            os.close(descriptor)


def fill_pipe(piece: int) -> None:
    """Put PIECE_BYTES into a pipe, in buffers as long as those that the kernel makes of what a program sends."""
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as near:
        far, _ = listener.accept()
        with far:
            writer = threading.Thread(target=near.sendall, args=(os.urandom(PIECE_BYTES),))
            writer.start()
            held = 0
            while held < PIECE_BYTES:
                held += os.splice(far.fileno(), piece, PIECE_BYTES - held)
            writer.join()


def count_dropped(sock: socket.socket, total: int) -> int:
    """As `count_copied`: TCP drops bytes by itself, a Unix socket's pages go to /dev/null."""
    left = total
    if sock.family != socket.AF_UNIX:
        unused = bytearray(PIECE_BYTES)  # tcp(7): with MSG_TRUNC nothing is written to it
        while left and (count := sock.recv_into(unused, min(left, PIECE_BYTES), socket.MSG_TRUNC)):
            left -= count
        return total - left
    output, into = make_pipe()
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        while left and (count := os.splice(sock.fileno(), into, min(left, PIECE_BYTES))):
            left -= count
            while count:
                count -= os.splice(output, null, count)
    finally:
        for descriptor in (output, into, null):
            os.close(descriptor)
    return total - left


def make_pipe() -> tuple[int, int]:
    ends = os.pipe()
    fcntl.fcntl(ends[1], fcntl.F_SETPIPE_SZ, PIECE_BYTES)
    return ends


# hashing


def send_random(sock: socket.socket, total: int) -> bytes:
    """Send bytes that never repeat; return their SHA-256."""
    digest = hashlib.sha256()
    while total:
        chunk = os.urandom(min(total, COPY_BYTES))
        digest.update(chunk)
        sock.sendall(chunk)
        total -= len(chunk)
    return digest.digest()


def hash_copied(sock: socket.socket, total: int) -> bytes:
    digest, buffer = hashlib.sha256(), memoryview(bytearray(COPY_BYTES))
    while total and (count := sock.recv_into(buffer[: min(total, COPY_BYTES)])):
        digest.update(buffer[:count])
        total -= count
    return digest.digest()


# a client's runs


@dataclass(frozen=True)
class Way:
    """One kind of stream, as the client has it."""

    kind: bytes
    name: str
    sends: Callable[[socket.socket, int], None] | None = None
    """How the client sends; None where it receives."""
    counts: Callable[[socket.socket, int], int] | None = None


COPIED_UP = Way(b"c", "to the server, ends that copy", sends=send_copied)
SHARED_UP = Way(b"s", "to the server, the proxy alone", sends=send_shared)
COPIED_DOWN = Way(b"C", "to the client, ends that copy", counts=count_copied)
SHARED_DOWN = Way(b"S", "to the client, the proxy alone", counts=count_dropped)


def ask(sock: socket.socket, kind: bytes, total: int) -> None:
    """Have the server do `kind`; return once it does."""
    sock.sendall(REQUEST.pack(kind, total))
    if sock.recv(1) != kind:
        raise RuntimeError("the server did not answer")


def run_way(sock: socket.socket, way: Way, total: int) -> None:
    """Send or receive `total` bytes after `ask`. Raises RuntimeError if fewer arrived."""
    if way.sends is not None:
        way.sends(sock, total)
        arrived = COUNT.unpack(sock.recv(COUNT.size, socket.MSG_WAITALL))[0]
    else:
        assert way.counts is not None
        arrived = way.counts(sock, total)
    if arrived != total:
        raise RuntimeError(f"{arrived} of {total} bytes arrived")


def check_by_hash(sock: socket.socket, total: int) -> None:
    """Send `total` bytes, then receive as many. Raises RuntimeError if they are not the same.

    Not both at a time: two socats in a row wait for each other for ever once both directions are full.
    """
    sock.settimeout(HASH_TIMEOUT_S)
    ask(sock, b"h", total)
    sent = send_random(sock, total)
    received = hash_copied(sock, total)
    if sock.recv(2 * DIGEST_BYTES, socket.MSG_WAITALL) != received + sent:
        raise RuntimeError("other bytes arrived than were sent")


# the server


def _echo(sock: socket.socket, _total: int) -> None:
    buffer = bytearray(4096)
    while count := sock.recv_into(buffer):
        sock.sendall(memoryview(buffer)[:count])


def _receive(count: Callable[[socket.socket, int], int]) -> Callable[[socket.socket, int], None]:
    return lambda sock, total: sock.sendall(COUNT.pack(count(sock, total)))


def _hash(sock: socket.socket, total: int) -> None:
    received = hash_copied(sock, total)
    sock.sendall(send_random(sock, total) + received)


SERVES: dict[bytes, Callable[[socket.socket, int], None]] = {
    b"e": _echo,
    COPIED_UP.kind: _receive(count_copied),
    SHARED_UP.kind: _receive(count_dropped),
    COPIED_DOWN.kind: send_copied,
    SHARED_DOWN.kind: send_shared,
    b"h": _hash,
}


def serve(sock: socket.socket) -> None:
    with sock:
        try:
            kind, total = REQUEST.unpack(sock.recv(REQUEST.size, socket.MSG_WAITALL))
            sock.sendall(kind)
            SERVES[kind](sock, total)
            sock.recv(1)  # whoever measures looks at the proxy's processes before the connection ends
        except (OSError, KeyError, struct.error):
            pass  # left, or only looked whether somebody listens


def main(where: str) -> None:
    """Serve on a Unix socket, or on a TCP port of the loopback interface."""
    if where.isdigit():
        listener = socket.create_server(("127.0.0.1", int(where)), backlog=1024)
    else:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(where)
        listener.listen(1024)
    threading.stack_size(262144)
    print("ready", flush=True)
    while True:
        threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()


if __name__ == "__main__":
    main(sys.argv[1])
