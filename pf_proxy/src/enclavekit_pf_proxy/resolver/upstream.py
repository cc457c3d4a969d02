# SPDX-License-Identifier: Apache-2.0
"""Asks the host's resolvers: DNS over a stream (RFC 1035 section 4.2.2) over vsock, in a few threads."""

from __future__ import annotations

import queue
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from enclavekit_core.address import Address
from enclavekit_core.errors import TransportError
from enclavekit_core.streams import connect

THREADS = 8
MAX_WAITING = 256
MAX_MESSAGE_BYTES = 65535
GOOD = (0, 3)  # NOERROR and NXDOMAIN are answers; anything else is a reason to ask the next

Done = Callable[[bytes | None], None]


class Upstreams:
    """`ask` from the loop; answers are handed on by `deliver`, in the loop again."""

    def __init__(self, addresses: Sequence[Address], timeout_s: float, wake: Callable[[], None]) -> None:
        self._addresses, self._timeout_s, self._wake = tuple(addresses), timeout_s, wake
        self._waiting: queue.Queue[tuple[bytes, Done]] = queue.Queue(MAX_WAITING)
        self._answers: deque[tuple[bytes | None, Done]] = deque()
        self._first = 0  # the upstream that answered last
        self._started = 0
        self._lock = threading.Lock()

    def ask(self, query: bytes, done: Done) -> bool:
        """Have `done` called with the answer, or None; False if too many wait already."""
        try:
            self._waiting.put_nowait((query, done))
        except queue.Full:
            return False
        if self._started < THREADS:
            self._started += 1
            threading.Thread(target=self._work, daemon=True, name="dns").start()
        return True

    def deliver(self) -> None:
        while self._answers:
            answer, done = self._answers.popleft()
            done(answer)

    def _work(self) -> None:
        while True:
            query, done = self._waiting.get()
            try:
                answer = self._ask_each(query)
            except Exception:  # whatever it is, the app must not wait for ever
                answer = None
            self._answers.append((answer, done))
            self._wake()

    def _ask_each(self, query: bytes) -> bytes | None:
        """Ask one after the other, from the one that answered last."""
        first, worse = self._first, None
        for step in range(len(self._addresses)):
            place = (first + step) % len(self._addresses)
            try:
                answer = ask_once(self._addresses[place], query, self._timeout_s)
            except (OSError, TransportError):
                continue
            if answer[:2] == query[:2] and answer[3] & 0x0F in GOOD:
                with self._lock:
                    self._first = place
                return answer
            worse = answer
        return worse


def ask_once(address: Address, query: bytes, timeout_s: float) -> bytes:
    """Return one resolver's answer. Raises OSError, TransportError."""
    deadline = time.monotonic() + timeout_s
    with connect(address, timeout_s) as sock:
        sock.settimeout(timeout_s)
        sock.sendall(len(query).to_bytes(2, "big") + query)
        length = int.from_bytes(_read(sock, 2, deadline), "big")
        if length < 12:
            raise ConnectionError("cannot read answer: too short")
        return _read(sock, length, deadline)


def _read(sock: socket.socket, count: int, deadline: float) -> bytes:
    data = b""
    while len(data) < count:
        sock.settimeout(max(0.001, deadline - time.monotonic()))
        piece = sock.recv(count - len(data))
        if not piece:
            raise ConnectionError("cannot read answer: the connection ended")
        data += piece
    return data
