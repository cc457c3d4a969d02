# SPDX-License-Identifier: Apache-2.0
"""Which file is hashed next: each waits at most once, and none is read by two workers at the same time. Pure.

Two lanes: a file is large once a worker has found it to be, and large ones never take the last worker, so that a small
file waits for small files only.
"""

from __future__ import annotations


class HashQueue:
    """Files to hash in the order in which they were first named; a later generation takes over the place."""

    def __init__(self) -> None:
        self._small: dict[bytes, int] = {}
        self._large: dict[bytes, int] = {}
        self._running: set[bytes] = set()

    def __len__(self) -> int:
        return len(self._small) + len(self._large) + len(self._running)

    @property
    def waiting(self) -> int:
        return len(self._small) + len(self._large)

    @property
    def running(self) -> int:
        return len(self._running)

    def put(self, path: bytes, generation: int) -> None:
        (self._large if path in self._large else self._small)[path] = generation

    def take(self, max_count: int) -> list[tuple[bytes, int]]:
        """Return paths and generations to hash now, none if nothing waits; `done` or `defer` has to follow for each."""
        return self._take(self._small, max_count)

    def take_large(self) -> list[tuple[bytes, int]]:
        """Return at most one file that was deferred, likewise."""
        return self._take(self._large, 1)

    def _take(self, lane: dict[bytes, int], max_count: int) -> list[tuple[bytes, int]]:
        # at most as many are skipped as there are files with the workers
        chosen: list[bytes] = []
        for path in lane:
            if len(chosen) == max_count:
                break
            if path not in self._running:
                chosen.append(path)
        self._running.update(chosen)
        return [(path, lane.pop(path)) for path in chosen]

    def defer(self, path: bytes, generation: int) -> None:
        """Put back what was taken, as large."""
        self._running.discard(path)
        self._large[path] = self._small.pop(path, generation)

    def done(self, path: bytes) -> None:
        self._running.discard(path)
