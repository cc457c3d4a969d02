# SPDX-License-Identifier: Apache-2.0
"""Every watched file with its state, generation and last hash. Pure: time is an argument, deeds are returned.

A generation is a number that rises whenever a file's content may have changed. A hash is begun for one generation and
counts only if that is still the file's, so that an older result never overwrites a newer one.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from enclavekit_core.bus import HASH_BYTES
from enclavekit_core.file_hash import FileHash, size_and_mtime_of
from enclavekit_core.file_record import FileRecord

from enclavekit_fs_monitor.file_state import Deed, Happening, State, next_state
from enclavekit_fs_monitor.hard_links import HardLinks
from enclavekit_fs_monitor.waiting import Patience, Waiting

ON_BUS = 1  # its hash may be on the bus, so that it has to be deleted there when it is no longer true
WAS_STILL = 2  # its signature would differ after any change: see `FileHash.was_still`


class Record:
    """One file; there may be a million of them, hence slots, no spare objects, and one value for hash and signature."""

    __slots__ = ("attempts", "flags", "generation", "state", "value")

    def __init__(self, generation: int) -> None:
        self.state = State.DELETED
        self.generation = generation
        self.attempts = 0
        """Attempts in a row that gave no hash."""
        self.flags = 0
        self.value: bytes | None = None
        """The last hash and the `signature_of` the file that it belongs to."""

    @property
    def digest(self) -> bytes | None:
        return self.value[:HASH_BYTES] if self.value is not None else None

    @property
    def signature(self) -> bytes | None:
        return self.value[HASH_BYTES:] if self.value is not None else None


@dataclass(frozen=True, slots=True)
class Action:
    deed: Deed
    """HASH, PUBLISH or WITHDRAW."""
    path: bytes
    generation: int
    value: bytes | None = None
    """Of what is to be published: see `Record.value`."""


class Tracker:
    """What is known about each file; every method returns what has to be done about it."""

    def __init__(self, patience: Patience | None = None, first_generation: int = 1) -> None:
        """`first_generation` lies above all of an earlier run if generations are to rise over restarts."""
        self._records: dict[bytes, Record] = {}
        self._generations = itertools.count(first_generation)
        self._waiting = Waiting(patience or Patience())
        self._links = HardLinks()

    def __len__(self) -> int:
        return len(self._records)

    def get(self, path: bytes) -> Record | None:
        return self._records.get(path)

    def paths(self) -> set[bytes]:
        return set(self._records)

    def paths_below(self, directory: bytes) -> list[bytes]:
        below = directory.rstrip(b"/") + b"/"
        return [path for path in self._records if path.startswith(below)]

    def records(self) -> Iterable[tuple[bytes, Record]]:
        return self._records.items()

    def closed(self) -> Iterator[tuple[bytes, Record]]:
        """Yield each file whose hash is known and current."""
        return ((path, record) for path, record in self._records.items() if record.state is State.CLOSED)

    def count_states(self) -> dict[str, int]:
        counts = dict.fromkeys((state.value for state in State if state is not State.DELETED), 0)
        for record in self._records.values():
            counts[record.state.value] += 1
        return counts

    def observe(self, path: bytes, happening: Happening, now_s: float) -> list[Action]:
        """Take note of something that the file system did."""
        record = self._records.get(path)
        if record is None:
            if happening is Happening.VANISH:
                return []  # a hash that an earlier run left on the bus goes when the bus is compared
            record = self._records[path] = Record(0)
        if happening in (Happening.CLOSE, Happening.SETTLE):
            record.attempts = 0
        record.generation = next(self._generations)
        return self._apply(path, record, happening, now_s)

    def find(self, path: bytes, signature: bytes, now_s: float) -> list[Action]:
        """Take note of a file that a scan found; one that has not changed since its hash is left alone."""
        record = self._records.get(path)
        unchanged = (
            record is not None
            and record.state is State.CLOSED
            and record.flags & WAS_STILL
            and record.signature == signature
        )
        return [] if unchanged else self.observe(path, Happening.SETTLE, now_s)

    def finish(
        self, path: bytes, generation: int, outcome: Happening, now_s: float, result: FileHash | None = None
    ) -> list[Action]:
        """Take note of how hashing ended: HASHED (with its result), UNSTABLE, UNREADABLE or VANISH."""
        record = self._records.get(path)
        if record is None or record.generation != generation:
            return []
        if outcome is not Happening.HASHED:
            record.attempts += 1
            return self._apply(path, record, outcome, now_s)
        assert result is not None
        changed = record.signature != result.signature
        self._forget_value(path, record)
        record.value, record.attempts = result.digest + result.signature, 0
        record.flags = record.flags & ~WAS_STILL | (WAS_STILL if result.was_still else 0)
        actions = self._apply(path, record, outcome, now_s)
        if result.links > 1:
            names = self._links.add(path, result.signature)
            # The kernel may announce a change under another of the file's names, which all share it. One that proves
            # unchanged sets nothing off: two files of one inode number (overlays) would wake each other for ever.
            actions += self._look_again(names, result.signature, now_s) if changed else []
        return actions

    def note_on_bus(self, path: bytes) -> None:
        """Take note that there is a hash of `path` on the bus, whoever put it there."""
        if (record := self._records.get(path)) is not None:
            record.flags |= ON_BUS

    def next_due_s(self) -> float | None:
        """Return when `take_due` has something to do, None if nothing waits."""
        return self._waiting.next_due_s()

    def take_due(self, now_s: float) -> list[Action]:
        """Return what has to be done about the files that were quiet for long enough."""
        actions = []
        if self._links.unindexed:
            known = ((path, record.signature) for path, record in self._records.items() if record.value is not None)
            for names, newest in self._links.index(known):
                actions += self._look_again(names, newest, now_s)
        for path in self._waiting.take(now_s):
            record = self._records[path]
            record.generation = next(self._generations)
            actions += self._apply(path, record, Happening.SETTLE, now_s)
        return actions

    def _look_again(self, names: Iterable[bytes], signature: bytes, now_s: float) -> list[Action]:
        """Hash those of `names` again whose hash is of a file with another signature."""
        actions: list[Action] = []
        for name in names:
            record = self._records.get(name)
            if record is not None and record.state is State.CLOSED and record.signature != signature:
                actions += self.observe(name, Happening.SETTLE, now_s)
        return actions

    def _forget_value(self, path: bytes, record: Record) -> None:
        if record.signature is not None:
            self._links.remove(path, record.signature)
        record.value = None

    def _apply(self, path: bytes, record: Record, happening: Happening, now_s: float) -> list[Action]:
        record.state, deed = next_state(record.state, happening)
        actions: list[Action] = []
        if deed in (Deed.WITHDRAW, Deed.WITHDRAW_AND_WAIT):
            self._forget_value(path, record)
            if record.flags & ON_BUS:
                record.flags &= ~ON_BUS
                actions = [Action(Deed.WITHDRAW, path, record.generation)]
        elif deed is Deed.PUBLISH:
            record.flags |= ON_BUS
            actions = [Action(deed, path, record.generation, record.value)]
        elif deed is Deed.HASH:
            actions = [Action(deed, path, record.generation)]
        if deed in (Deed.WAIT, Deed.WITHDRAW_AND_WAIT):
            self._waiting.put(path, happening, record.attempts, now_s)
        else:
            self._waiting.drop(path)
        if record.state is State.DELETED:
            del self._records[path]
        return actions


def record_of(value: bytes, generation: int) -> FileRecord:
    """Return what the bus says about a file beside its hash, out of `Record.value`."""
    return FileRecord(value[:HASH_BYTES], *size_and_mtime_of(value[HASH_BYTES:]), generation)
