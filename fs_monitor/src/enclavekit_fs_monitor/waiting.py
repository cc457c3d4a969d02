# SPDX-License-Identifier: Apache-2.0
"""Files that are to be looked at again after a while, and when. Pure.

However often a file changes, it is looked at `MAX_PUT_OFF_S` after the first of these changes: one that never rests is
still hashed in between, if it stands still for so long.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

from enclavekit_fs_monitor.file_state import Happening

MAX_PUT_OFF_S = 2.0
MAX_PAUSE_S = 30.0  # the longest pause between two attempts on a file that is open, unstable or unreadable
MAX_DOUBLINGS = 10  # of the pause: enough to reach the longest from any quiet time that makes sense


@dataclass(frozen=True, slots=True)
class Patience:
    """How long files are left alone."""

    quiet_s: float = 0.1
    """After a close: whoever writes in small steps opens the file again."""
    settle_s: float = 0.5
    """After a change without a close: links, truncation by path; also the first pause of a file that has a writer."""


class Waiting:
    """At most one due time for each path."""

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self._due: dict[bytes, tuple[float, float]] = {}  # path -> due, and since when it waits
        self._heap: list[tuple[float, bytes]] = []  # with entries that are no longer true

    def __len__(self) -> int:
        return len(self._due)

    def put(self, path: bytes, happening: Happening, attempts: int, now_s: float) -> None:
        """Look at `path` again: after its quiet time, or after a pause that doubles with each failed attempt."""
        since_s = self._due[path][1] if path in self._due else now_s
        if attempts:
            due_s = now_s + min(self._patience.settle_s * 2 ** min(attempts - 1, MAX_DOUBLINGS), MAX_PAUSE_S)
            since_s = due_s  # a close within this pause gets its whole quiet time
        else:
            pause_s = self._patience.quiet_s if happening is Happening.CLOSE else self._patience.settle_s
            due_s = max(now_s, min(now_s + pause_s, since_s + max(MAX_PUT_OFF_S, pause_s)))
        self._due[path] = (due_s, since_s)
        heapq.heappush(self._heap, (due_s, path))
        if len(self._heap) > 2 * len(self._due) + 100:
            self._heap = [(due_s, path) for path, (due_s, _) in self._due.items()]
            heapq.heapify(self._heap)

    def drop(self, path: bytes) -> None:
        self._due.pop(path, None)

    def next_due_s(self) -> float | None:
        """Return when `take` has something, None if nothing waits."""
        while self._heap and self._due.get(self._heap[0][1], (None,))[0] != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def take(self, now_s: float) -> list[bytes]:
        """Return the paths that are due."""
        due: list[bytes] = []
        while (next_s := self.next_due_s()) is not None and next_s <= now_s:
            _, path = heapq.heappop(self._heap)
            del self._due[path]
            due.append(path)
        return due
