# SPDX-License-Identifier: Apache-2.0
"""Every watched file with its state, generation and last hash. Pure: time is an argument, deeds are returned.

A generation is a number that rises whenever a file's content may have changed. A hash is begun for one generation and
counts only if that is still the file's, so that an older result never overwrites a newer one.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from enclavekit_core.file_hash import INODE_BYTES

from enclavekit_fs_monitor.file_state import Deed, Happening, State, next_state

QUIET_S = 0.5  # a file without a writer is taken as complete after this long: links, truncation by path
MAX_WAIT_S = 30.0  # the longest pause between two attempts on a file that is open, unstable or unreadable


@dataclass(slots=True)
class Record:
    state: State
    generation: int
    attempts: int = 0
    """Attempts in a row that gave no hash."""
    digest: bytes | None = None
    """The hash that is on the bus or on its way there."""
    signature: bytes | None = None
    """`signature_of` the file that `digest` belongs to."""


@dataclass(frozen=True, slots=True)
class Action:
    deed: Deed
    """HASH, PUBLISH or WITHDRAW."""
    path: bytes
    generation: int
    digest: bytes | None = None


class Tracker:
    """What is known about each file; every method returns what has to be done about it."""

    def __init__(self) -> None:
        self._records: dict[bytes, Record] = {}
        self._generations = itertools.count(1)
        self._due: list[tuple[float, int, bytes]] = []
        self._links: dict[bytes, tuple[bytes, ...]] = {}

    def __len__(self) -> int:
        return len(self._records)

    def get(self, path: bytes) -> Record | None:
        return self._records.get(path)

    def paths(self) -> set[bytes]:
        return set(self._records)

    def closed(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield path and digest of each file whose hash is known and current."""
        for path, record in self._records.items():
            if record.state is State.CLOSED and record.digest is not None:
                yield path, record.digest

    def observe(self, path: bytes, happening: Happening, now_s: float) -> list[Action]:
        """Take note of something that the file system did."""
        record = self._records.get(path)
        if record is None:
            if happening is Happening.VANISH:
                # not known to us is not unknown to the bus: another run may have published it
                return [Action(Deed.WITHDRAW, path, 0)]
            record = self._records[path] = Record(State.DELETED, 0)
        elif happening is Happening.SETTLE:
            record.attempts = 0
        record.generation = next(self._generations)
        return self._apply(path, record, happening, now_s)

    def find(self, path: bytes, signature: bytes, now_s: float) -> list[Action]:
        """Take note of a file that a scan found; one that has not changed since its hash is left alone."""
        record = self._records.get(path)
        if record is not None and record.state is State.CLOSED and record.signature == signature:
            return []
        return self.observe(path, Happening.SETTLE, now_s)

    def finish(
        self,
        path: bytes,
        generation: int,
        outcome: Happening,
        now_s: float,
        *,
        digest: bytes | None = None,
        signature: bytes | None = None,
    ) -> list[Action]:
        """Take note of how hashing ended: HASHED (with both values), UNSTABLE, UNREADABLE or VANISH."""
        record = self._records.get(path)
        if record is None or record.generation != generation:
            return []
        if outcome is not Happening.HASHED:
            record.attempts += 1
            return self._apply(path, record, outcome, now_s)
        assert signature is not None
        changed = record.signature != signature
        self._unlink(path, record)
        record.digest, record.signature, record.attempts = digest, signature, 0
        actions = self._apply(path, record, outcome, now_s)
        names = self._links.get(signature[:INODE_BYTES], ())
        self._links[signature[:INODE_BYTES]] = (*names, path)
        # The kernel announces a change under the name that it was made by; the file's other names share it. One that
        # proves unchanged sets nothing off: two files of one inode number (overlays) would wake each other for ever.
        for name in names if changed else ():
            other = self._records[name]
            if other.state is State.CLOSED and other.signature != signature:
                actions += self.observe(name, Happening.SETTLE, now_s)
        return actions

    def _unlink(self, path: bytes, record: Record) -> None:
        """Forget that `path` is a name of the file it was last hashed as."""
        if record.signature is None:
            return
        inode = record.signature[:INODE_BYTES]
        names = tuple(name for name in self._links.get(inode, ()) if name != path)
        if names:
            self._links[inode] = names
        else:
            self._links.pop(inode, None)

    def _apply(self, path: bytes, record: Record, happening: Happening, now_s: float) -> list[Action]:
        record.state, deed = next_state(record.state, happening)
        actions: list[Action] = []
        match deed:
            case Deed.NOTHING:
                pass
            case Deed.WAIT:
                self._wait(path, record, now_s)
            case Deed.WITHDRAW_AND_WAIT:
                self._unlink(path, record)
                record.digest = record.signature = None
                actions = [Action(Deed.WITHDRAW, path, record.generation)]
                self._wait(path, record, now_s)
            case _:
                actions = [Action(deed, path, record.generation, record.digest if deed is Deed.PUBLISH else None)]
        if record.state is State.DELETED:
            self._unlink(path, record)
            del self._records[path]
        return actions

    def _wait(self, path: bytes, record: Record, now_s: float) -> None:
        pause_s = min(QUIET_S * 2 ** min(record.attempts, 10), MAX_WAIT_S)
        heapq.heappush(self._due, (now_s + pause_s, record.generation, path))

    def next_due_s(self) -> float | None:
        """Return when `take_due` has something to do, None if nothing waits."""
        return self._due[0][0] if self._due else None

    def take_due(self, now_s: float) -> list[Action]:
        """Return what has to be done about the files that were quiet for long enough."""
        actions = []
        while self._due and self._due[0][0] <= now_s:
            _, generation, path = heapq.heappop(self._due)
            record = self._records.get(path)
            if record is not None and record.generation == generation:
                record.generation = next(self._generations)
                actions += self._apply(path, record, Happening.SETTLE, now_s)
        return actions
