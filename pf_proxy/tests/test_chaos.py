# SPDX-License-Identifier: Apache-2.0
"""Many connections at once, ended in every way at random moments: what arrives is a prefix of what was sent, all of
it where both ends were polite, and nothing is left behind."""

import contextlib
import os
import random
import socket
import threading
import time

import pytest

LINGER_RESET = b"\1\0\0\0\0\0\0\0"  # struct linger: on, 0 s
PATIENCE_S = 60.0
AT_ONCE = 6
PATTERN = random.Random(7).randbytes(1 << 16)
MAX_BYTES = 1 << 20


def slice_of(start, count):
    """`count` bytes of the endless stream that PATTERN repeats, from `start`."""
    offset = start % len(PATTERN)
    return (PATTERN[offset:] + PATTERN * (count // len(PATTERN) + 1))[:count]


class End:
    """One end: sends a number of bytes, reads what comes, both in pieces of random size; may die in between."""

    def __init__(self, sock, seed, total, dies_after):
        self.sock, self.random = sock, random.Random(seed)
        self.total, self.dies_after = total, dies_after
        self.received, self.intact, self.saw_end = 0, True, False
        self.threads = [threading.Thread(target=self.send), threading.Thread(target=self.receive)]
        for thread in self.threads:
            thread.start()

    def size(self):
        return self.random.choice((1, 3, 100, 4096, 16384, 65536, 200000))

    def send(self):
        sent = 0
        try:
            while sent < self.total:
                if self.dies_after is not None and sent >= self.dies_after:
                    if self.sock.family == socket.AF_INET:
                        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_RESET)
                    self.sock.shutdown(socket.SHUT_RDWR)
                    return
                piece = slice_of(sent, min(self.size(), self.total - sent))
                self.sock.sendall(piece)
                sent += len(piece)
            self.sock.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # the other end has died

    def receive(self):
        try:
            while piece := self.sock.recv(self.size()):
                self.intact &= piece == slice_of(self.received, len(piece))
                self.received += len(piece)
            self.saw_end = True
        except OSError:
            pass

    def join(self):
        for thread in self.threads:
            thread.join(PATIENCE_S)
            assert not thread.is_alive(), "an end waits for ever"
        self.sock.close()


def count_sockets():
    """Pipes are not counted: the relay keeps some for the next flows."""
    count = 0
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            count += os.readlink(f"/proc/self/fd/{name}").startswith("socket:")
    return count


@pytest.mark.parametrize("connections", [300, pytest.param(3000, marks=pytest.mark.long)])
def test_ends_of_every_kind_under_load(relay_pair, connections):
    chance = random.Random(1)
    before = count_sockets()
    for _ in range(connections // AT_ONCE):
        pairs = []
        for _ in range(AT_ONCE):
            client, upstream = relay_pair()
            totals = [chance.choice((0, 1, 16384, 100_000, MAX_BYTES)) for _ in range(2)]
            deaths = [chance.randrange(1, total) if total > 1 and chance.random() < 0.3 else None for total in totals]
            ends = zip((client, upstream), totals, deaths, strict=True)
            pairs.append([End(sock, chance.random(), total, death) for sock, total, death in ends])
        for ends in pairs:
            for one, other in (ends, ends[::-1]):
                one.join()
                other.join()
                assert one.intact, "bytes were lost, repeated or mixed up"
                assert one.received <= other.total
                if one.dies_after is None and other.dies_after is None:
                    assert (one.received, one.saw_end) == (other.total, True)
    deadline = time.monotonic() + PATIENCE_S
    while count_sockets() > before:  # the relay hears of the last ends when its loop comes round
        assert time.monotonic() < deadline, "a descriptor stays"
