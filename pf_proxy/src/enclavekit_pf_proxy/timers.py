# SPDX-License-Identifier: Apache-2.0
"""When something is due: coarse, so that setting, moving and dropping a deadline cost nothing to speak of. Pure.

Deadlines only matter when they pass, and nearly none does. Buckets of TICK_S hold them; one that has moved to later
stays where it is and is put off when its bucket is due.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Hashable
from typing import Generic, TypeVar

TICK_S = 1 / 16  # exact in binary, so that no rounding makes a deadline late or early
NEVER = math.inf
Key = TypeVar("Key", bound=Hashable)


class Timers(Generic[Key]):
    """At most one deadline per key."""

    def __init__(self) -> None:
        self._buckets: dict[int, set[Key]] = {}
        self._order: list[int] = []  # a heap of the buckets' ticks, empty ones included
        self._ticks: dict[Key, int] = {}
        self.earliest = NEVER
        """Nothing is due before. Something may be then: what was dropped since still counts."""

    def __len__(self) -> int:
        return len(self._ticks)

    def set(self, key: Key, deadline: float) -> None:
        """Have `key` due at `deadline` or before: an earlier one that is set already stands."""
        tick = int(deadline / TICK_S) + 1
        before = self._ticks.get(key)
        if before is not None:
            if before <= tick:
                return
            self._buckets[before].discard(key)
        self._ticks[key] = tick
        bucket = self._buckets.get(tick)
        if bucket is None:
            bucket = self._buckets[tick] = set()
            heapq.heappush(self._order, tick)
            self.earliest = self._order[0] * TICK_S
        bucket.add(key)

    def drop(self, key: Key) -> None:
        tick = self._ticks.pop(key, None)
        if tick is not None:
            self._buckets[tick].discard(key)

    def next_due(self) -> float | None:
        """Return when something may be due; None if nothing is set."""
        while self._order and not self._buckets[self._order[0]]:
            del self._buckets[heapq.heappop(self._order)]
        return self._order[0] * TICK_S if self._order else None

    def take_due(self, now: float) -> list[Key]:
        """Return the keys that are due and forget their deadlines."""
        due: list[Key] = []
        while self._order and self._order[0] * TICK_S <= now:
            for key in self._buckets.pop(heapq.heappop(self._order)):
                del self._ticks[key]
                due.append(key)
        self.earliest = NEVER if (first := self.next_due()) is None else first
        return due
