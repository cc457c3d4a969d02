# SPDX-License-Identifier: Apache-2.0
"""The last lines of every unit, in a bounded number of bytes. Pure.

The bound is one for all. When it is reached, the unit that holds most loses its oldest lines: one that floods its log
pushes out its own past and nobody else's.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Collection

from enclavekit_enclave_init.logs.records import Batch, Line, lines_of

BATCH_BYTES = 200  # what the objects of a batch take beside its text; a line a batch is the usual case


class LogRing:
    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._batches: dict[str, deque[Batch]] = {}
        self._sizes: dict[str, int] = {}

    @property
    def size_bytes(self) -> int:
        """What is held, at most max_bytes."""
        return self._bytes

    def add(self, batch: Batch) -> None:
        size = len(batch.text) + BATCH_BYTES
        self._batches.setdefault(batch.unit, deque()).append(batch)
        self._sizes[batch.unit] = self._sizes.get(batch.unit, 0) + size
        self._bytes += size
        self._shrink()

    def resize(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._shrink()

    def _shrink(self) -> None:
        while self._bytes > self._max_bytes:
            self._drop_oldest(max(self._sizes, key=self._sizes.__getitem__))

    def _drop_oldest(self, unit: str) -> None:
        batches = self._batches[unit]
        size = len(batches.popleft().text) + BATCH_BYTES
        self._bytes -= size
        self._sizes[unit] -= size
        if not batches:
            del self._batches[unit], self._sizes[unit]

    def clear(self, unit: str) -> None:
        """Forget what `unit` said."""
        while unit in self._batches:
            self._drop_oldest(unit)

    def tail(self, units: Collection[str] | None, count: int, since_s: float = 0.0) -> list[Line]:
        """Return the last `count` lines of `units` (None: of all) not older than `since_s`, oldest first."""
        chosen = [list(held) for unit, held in self._batches.items() if units is None or unit in units]
        batches = list(heapq.merge(*chosen, key=lambda batch: batch.sequence))
        wanted: list[Batch] = []
        found = 0
        for batch in reversed(batches):
            if found >= count:
                break
            if batch.time_s >= since_s:  # the clock may have jumped: older ones may still be new enough
                wanted.append(batch)
                found += batch.count
        lines = list(lines_of(reversed(wanted)))
        return lines[len(lines) - count :] if found > count else lines
