# SPDX-License-Identifier: Apache-2.0
"""What waits for one reader of live logs: bounded, so that a reader that is slow or stopped costs itself only. Pure.

When the bound is reached, whole batches are dropped, their lines counted, and the number is told to the reader in
their place as soon as there is room.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from enclavekit_enclave_init.logs.records import INIT, INIT_NAME, Batch

MAX_QUEUE_BYTES = 512 * 1024  # a second of a chatty service; times MAX_READERS is what all of them can cost


class LineQueue:
    """Batches in, bytes out."""

    def __init__(self, encode: Callable[[Batch], bytes], max_bytes: int = MAX_QUEUE_BYTES) -> None:
        self._encode, self._max_bytes = encode, max_bytes
        self._parts: deque[bytes] = deque()
        self._bytes = 0
        self.dropped_lines = 0
        """Not told yet."""
        self._last: Batch | None = None

    def __bool__(self) -> bool:
        return bool(self._parts)

    def offer(self, batch: Batch) -> None:
        """Keep `batch` if there is room."""
        if self.dropped_lines and self._bytes > self._max_bytes // 2:
            # once it has lost some, half the room has to be free again: not one line in, one line lost
            self._drop(batch)
            return
        self._tell_dropped()
        data = self._encode(batch)
        if self._bytes + len(data) > self._max_bytes:
            self._drop(batch)
            return
        self._keep(data)

    def _drop(self, batch: Batch) -> None:
        self.dropped_lines += batch.count
        self._last = batch

    def take(self) -> bytes:
        """Return what is to be sent next, at least a whole part; empty if there is nothing."""
        if not self._parts:
            return b""
        data = self._parts.popleft()
        while self._parts and len(data) + len(self._parts[0]) <= 65536:
            data += self._parts.popleft()
        self._bytes -= len(data)
        if not self._parts:
            self._tell_dropped()
        return data

    def give_back(self, rest: bytes) -> None:
        """Put back what the reader did not take of the last `take`."""
        if rest:
            self._parts.appendleft(rest)
            self._bytes += len(rest)

    def _tell_dropped(self) -> None:
        if self.dropped_lines and self._last is not None:
            text = b"%d lines dropped: this reader is too slow\n" % self.dropped_lines
            self.dropped_lines = 0
            self._keep(self._encode(Batch(self._last.sequence, self._last.time_s, INIT_NAME, INIT, text)))

    def _keep(self, data: bytes) -> None:
        self._parts.append(data)
        self._bytes += len(data)
