# SPDX-License-Identifier: Apache-2.0
"""Which file is hashed next: each waits at most once, and none is read by two workers at the same time. Pure."""

from __future__ import annotations


class HashQueue:
    """Files to hash in the order in which they were first named; a later generation takes over the place."""

    def __init__(self) -> None:
        self._waiting: dict[bytes, int] = {}
        self._running: set[bytes] = set()

    def __len__(self) -> int:
        return len(self._waiting) + len(self._running)

    def put(self, path: bytes, generation: int) -> None:
        self._waiting[path] = generation

    def take(self) -> tuple[bytes, int] | None:
        """Return a path and its generation to hash now, None if there is none; `done` has to follow."""
        # at most as many are skipped as there are workers
        path = next((path for path in self._waiting if path not in self._running), None)
        if path is None:
            return None
        self._running.add(path)
        return path, self._waiting.pop(path)

    def done(self, path: bytes) -> None:
        self._running.discard(path)
