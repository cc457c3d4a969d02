# SPDX-License-Identifier: Apache-2.0
"""The receiver's part of a copy: records in, actions out, each checked against what may come now. Pure.

between files:  ENTRY, LEFT_OUT; content too if a file has been asked for, which begins that file
in a file:      DATA, HOLE, KEEP, then END or GONE
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from enclavekit_core.errors import LocalProtocolError, RemoteProtocolError

from enclavekit_pipeline.wire.copy_messages import Done
from enclavekit_pipeline.wire.digest import new_digest
from enclavekit_pipeline.wire.tree_content import MAX_CHUNKS, ContentHash, chunk_bytes
from enclavekit_pipeline.wire.tree_order import MAX_DEPTH, EntryOrder, shown
from enclavekit_pipeline.wire.tree_records import (
    FROM_SENDER,
    MAX_DIGESTS,
    Count,
    Data,
    Digests,
    End,
    Entry,
    EntryType,
    LeftOut,
    Plain,
    Record,
    RecordDecoder,
    RecordKind,
    encode_record,
)
from enclavekit_pipeline.wire.tree_sender import MAX_ASKED, is_large

# Zero bytes of holes that have to be hashed one by one, since they do not fill chunks: they cost their sender nothing.
# So many for each byte of content; an entry counts as some. A file with one block of 4 KiB in each chunk of 1 MiB needs
# 256, and 4096 make what comes at once, half a MiB, two seconds of work.
ZEROS_PER_BYTE = 4096
ENTRY_BYTES = 256
FREE_ZEROS = 2**30
MAX_WAITING = 4 * MAX_ASKED + MAX_DEPTH  # on content of files before; a sender of ours stays below


@dataclass(frozen=True, slots=True)
class Announced:
    """A file will come: say with `answer` what there is of it."""

    entry: Entry


@dataclass(frozen=True, slots=True)
class Made:
    """A directory or a symlink: make it. A hard link: its file is complete, make it."""

    entry: Entry


@dataclass(frozen=True, slots=True)
class Left:
    """Nothing more comes into this directory: give it its mode and time."""

    entry: Entry


@dataclass(frozen=True, slots=True)
class Begun:
    """Content of this file follows."""

    entry: Entry


@dataclass(frozen=True, slots=True)
class Hole:
    count: int


@dataclass(frozen=True, slots=True)
class Kept:
    """These chunks, `count` bytes in all, are as the receiver has them at the same place."""

    digests: tuple[bytes, ...]
    count: int


@dataclass(frozen=True, slots=True)
class Complete:
    """The file is what its sender says: put it in place."""

    entry: Entry
    size: int


@dataclass(frozen=True, slots=True)
class Dropped:
    """The file does not come after all."""

    entry: Entry


Action = Announced | Made | Left | Begun | Data | Hole | Kept | Complete | Dropped | LeftOut


@dataclass
class _File:
    entry: Entry
    digests: tuple[bytes, ...] = ()
    """What was answered."""
    has_bytes: int = 0
    answered: bool = False
    after: list[Action] = field(default_factory=list)
    """What waits until this file is in place."""


class TreeReceiver:
    """Of one copy. Whoever runs the actions calls `answer` for each Announced."""

    def __init__(self, *, unsafe_links: bool, may_ask: bool) -> None:
        self._decoder = RecordDecoder(FROM_SENDER)
        self._order = EntryOrder(unsafe_links)
        self._may_ask = may_ask
        self._asked: deque[_File] = deque()
        self._waiting = 0
        self._current: _File | None = None
        self._content = ContentHash(1)
        self._cut_short = False  # a short chunk was kept: the file ends there
        self._content_bytes = self._zeros = 0  # that came; that were hashed of holes
        self._has_hole = False  # of a whole chunk, in this file: their digest is made once
        self._digest = new_digest()
        self.size = self.entries = 0

    def feed(self, data: bytes | memoryview) -> list[Action]:
        """Return what is to be done. Raises RemoteProtocolError, after which the copy is lost."""
        actions: list[Action] = []
        for record in self._decoder.feed(data):
            self._take(record, actions)
        return actions

    def answer(self, entry: Entry, has_bytes: int, digests: list[bytes]) -> bytes:
        """Return the answer for an Announced: what there is of the file, by chunks of `chunk_bytes(entry.size)`."""
        file = next((file for file in self._asked if not file.answered), None)
        if file is None or file.entry is not entry:
            raise LocalProtocolError("cannot answer: nobody asked")
        file.answered = True
        if not digests:
            return encode_record(Plain(RecordKind.NOTHING))
        file.digests, file.has_bytes = tuple(digests), has_bytes
        parts: list[Record] = [Digests(file.digests[i : i + MAX_DIGESTS]) for i in range(0, len(digests), MAX_DIGESTS)]
        return b"".join(map(encode_record, [*parts, Count(RecordKind.HAVE, has_bytes)]))

    def finish(self) -> list[Action]:
        """Say that no more records come; return what is left to do. Raises RemoteProtocolError."""
        self._decoder.feed_eof()
        if self._current is not None or self._asked:
            raise RemoteProtocolError("cannot read record: the copy ended in the middle of a file")
        return [Left(entry) for entry in self._order.finish()]

    @property
    def moved(self) -> int:
        """Bytes of content that have come, or stayed, so far."""
        return self.size + (self._content.size if self._current is not None else 0)

    @property
    def done(self) -> Done:
        return Done(digest=self._digest.hexdigest(), size=self.size, entries=self.entries)

    def _take(self, record: Record, actions: list[Action]) -> None:
        match record:
            case Data() | Count():
                self._take_content(self._file(actions), record, actions)
            case End() | Plain():
                self._end(self._file(actions), record, actions)
            case Entry() | LeftOut() if self._current is not None:
                raise RemoteProtocolError("cannot read record: an entry in the middle of a file")
            case Entry():
                self._digest.update(encode_record(record))
                self.entries += 1
                self._enter(record, actions)
            case LeftOut():
                self._digest.update(encode_record(record))
                actions.append(record)
            case Digests():
                raise RemoteProtocolError("cannot read record: digests from the wrong side")

    def _enter(self, entry: Entry, actions: list[Action]) -> None:
        if self._asked and is_large(self._asked[-1].entry):
            raise RemoteProtocolError("cannot read record: an entry while a large file is due")
        for left in self._order.enter(entry):
            self._in_turn(Left(left), actions)
        match entry.type:
            case EntryType.FILE if entry.ask:
                if not self._may_ask:
                    raise RemoteProtocolError("cannot read record: a question that was not agreed on")
                self._asked.append(_File(entry))
                self._count_waiting()
                actions.append(Announced(entry))
            case EntryType.FILE:
                if self._asked:
                    raise RemoteProtocolError("cannot read record: a file while another is due")
                self._begin(_File(entry, answered=True), actions)
            case EntryType.HARDLINK:
                self._in_turn(Made(entry), actions)
            case EntryType.DIRECTORY | EntryType.SYMLINK:
                actions.append(Made(entry))

    def _in_turn(self, action: Action, actions: list[Action]) -> None:
        """Let an action wait for the files that were announced before it."""
        if not self._asked:
            actions.append(action)
            return
        self._asked[-1].after.append(action)
        self._count_waiting()

    def _count_waiting(self) -> None:
        self._waiting += 1
        if self._waiting > MAX_WAITING:
            raise RemoteProtocolError("cannot read record: too much announced and not sent")

    def _file(self, actions: list[Action]) -> _File:
        if self._current is None:
            if not self._asked or not self._asked[0].answered:
                raise RemoteProtocolError("cannot read record: content that belongs to no file")
            self._begin(self._asked[0], actions)
        assert self._current is not None
        return self._current

    def _begin(self, file: _File, actions: list[Action]) -> None:
        self._current, self._cut_short, self._has_hole = file, False, False
        self._content = ContentHash(chunk_bytes(file.entry.size))
        actions.append(Begun(file.entry))

    def _take_content(self, file: _File, record: Data | Count, actions: list[Action]) -> None:
        if self._cut_short:
            raise RemoteProtocolError("cannot read record: content after the last chunk")
        match record:
            case Data(data):
                self._content.update(data)
                self._content_bytes += len(data)
                actions.append(record)
            case Count(RecordKind.HOLE, count):
                # of holes as many chunks as such a file may have: they cost their sender nothing
                if self._content.size + count > MAX_CHUNKS * chunk_bytes(file.entry.size):
                    raise RemoteProtocolError("cannot read record: too large a file")
                self._charge(count, chunk_bytes(file.entry.size))
                self._content.zeros(count)
                actions.append(Hole(count))
            case Count(RecordKind.KEEP, count):
                actions.append(self._keep(file, count))
            case _:
                raise RemoteProtocolError("cannot read record: that is no content")

    def _charge(self, count: int, chunk: int) -> None:
        """Raises RemoteProtocolError if hashing a hole is more work than what has come is worth."""
        first = min(count, -self._content.size % chunk)
        chunks, last = divmod(count - first, chunk)
        self._zeros += first + last
        if chunks and not self._has_hole:
            self._has_hole = True
            self._zeros += chunk
        if self._zeros > FREE_ZEROS + ZEROS_PER_BYTE * (self._content_bytes + ENTRY_BYTES * self.entries):
            raise RemoteProtocolError("cannot read record: holes without end, and hardly any content between them")

    def _keep(self, file: _File, count: int) -> Kept:
        chunk, content = chunk_bytes(file.entry.size), self._content
        first = content.size // chunk
        digests = file.digests[first : first + count]
        if not content.at_boundary or len(digests) != count:
            raise RemoteProtocolError("cannot read record: it keeps what is not there")
        kept = min(count * chunk, file.has_bytes - first * chunk)
        self._cut_short = kept < count * chunk
        content.keep(digests, kept)
        return Kept(digests, kept)

    def _end(self, file: _File, record: End | Plain, actions: list[Action]) -> None:
        self._digest.update(encode_record(record))
        if isinstance(record, End):
            if (self._content.size, self._content.digest()) != (record.size, record.digest):
                name = shown(file.entry.path) or "it"
                raise RemoteProtocolError(f"cannot copy {name}: what arrived is not what was sent")
            self.size += record.size
            actions.append(Complete(file.entry, record.size))
        elif record.kind is RecordKind.GONE:
            actions.append(Dropped(file.entry))
        else:
            raise RemoteProtocolError("cannot read record: that does not end a file")
        self._current = None
        if self._asked and self._asked[0] is file:
            self._asked.popleft()
            self._waiting -= 1 + len(file.after)
            actions += file.after
