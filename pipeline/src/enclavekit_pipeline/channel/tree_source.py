# SPDX-License-Identifier: Apache-2.0
"""Reads what is to be copied and makes its records: the sender's hands. Blocking: callers run it in a thread, never two
calls at once.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Generator, Iterator
from dataclasses import replace

from enclavekit_pipeline.channel.batch import BATCH_BYTES, Batch, BatchBuffer
from enclavekit_pipeline.channel.holes import is_hole
from enclavekit_pipeline.channel.tree_directories import copy_error
from enclavekit_pipeline.channel.tree_walk import ReadOptions, TreeWalk
from enclavekit_pipeline.wire.digest import new_digest
from enclavekit_pipeline.wire.tree_content import ContentHash, chunk_bytes, zero_digest
from enclavekit_pipeline.wire.tree_records import (
    Count,
    End,
    Entry,
    EntryType,
    LeftOut,
    Plain,
    RecordKind,
    Why,
    encode_record,
)
from enclavekit_pipeline.wire.tree_sender import TreeSender, is_large

__all__ = ["ReadOptions", "TreeSource"]

READ_BYTES = 256 * 1024  # of what is compared
BATCH_STEPS = 16  # blocks that are compared but not sent also take their time
# what opening something that was listed may fail with though nothing is wrong: gone, another thing now, not for us
UNREADABLE = (errno.ENOENT, errno.ELOOP, errno.ENXIO, errno.ENOTDIR, errno.EACCES, errno.EPERM)

Steps = Iterator[bool]
"""What is to be sent goes into the batch; each step yields True, or False where an answer is needed first."""


class TreeSource:
    """One copy's source: a file or a directory, already open, which belongs to this object from now on."""

    def __init__(self, descriptor: int, label: str, options: ReadOptions) -> None:
        self._label, self._options = label, options
        self._walk = TreeWalk(descriptor, label, options)
        self.sender = TreeSender()
        self._batch = BatchBuffer()
        self._steps = self._records()
        self._content_hash: ContentHash | None = None
        self.left_out: list[LeftOut] = []
        """Since whoever reports it last looked."""

    def next_batch(self, answers: list[bytes]) -> Batch:
        """Return what to send next, good until the batch after the next. Raises InputError, RemoteProtocolError."""
        for data in answers:
            self.sender.feed(data)
        batch, steps = self._batch, 0
        batch.begin()
        size = 0
        for may_go_on in self._steps:
            if not may_go_on:
                return Batch(batch.data, waits=True)
            steps += batch.size == size
            size = batch.size
            if size >= BATCH_BYTES or steps >= BATCH_STEPS:
                return Batch(batch.data)
        return Batch(batch.data, finished=True)

    @property
    def moved(self) -> int:
        """Bytes of content that have been sent, or did not have to be, so far."""
        current = self._content_hash
        return self.sender.size + (current.size if current is not None else 0)

    def measure(self) -> int:
        """Return how many bytes the files of the source have, roughly: for somebody who watches."""
        return sum(entry.size for entry in self._walk.entries() if isinstance(entry, Entry))

    def close(self) -> None:
        """Idempotent."""
        self._steps.close()
        self._walk.close()

    def _records(self) -> Generator[bool, None, None]:
        sender, send = self.sender, self._batch.add
        for item in self._walk.entries():
            if isinstance(item, LeftOut):
                self.left_out.append(item)
                send(sender.leave_out(item))
                yield True
                continue
            wanted = self._options.delta or (self._options.resume and is_large(item))
            entry = replace(item, ask=wanted and item.type is EntryType.FILE)
            while not sender.may_announce(entry):
                yield from self._answered_file()
            if entry.type is EntryType.FILE and not entry.ask:
                yield from self._announced_with_content(entry)
            else:
                send(sender.announce(entry))
                yield True
            while sender.asked is not None and sender.asked.answered:
                yield from self._answered_file()
        while sender.asked is not None:
            yield from self._answered_file()

    def _answered_file(self) -> Steps:
        asked = self.sender.asked
        assert asked is not None
        while not asked.answered:
            yield False
        try:
            descriptor = self._walk.open(asked.entry.path)
        except OSError as exc:
            if exc.errno not in UNREADABLE or not asked.entry.path:
                raise copy_error(self._label, asked.entry.path, exc) from exc
            self._batch.add(self.sender.end_file(Plain(RecordKind.GONE)))
            yield True
            yield from self._leave_out(asked.entry.path)
            return
        yield from self._content(descriptor, asked.entry, asked.digests)

    def _announced_with_content(self, entry: Entry) -> Steps:
        try:
            descriptor = self._walk.open(entry.path)
        except OSError as exc:
            if exc.errno not in UNREADABLE or not entry.path:
                raise copy_error(self._label, entry.path, exc) from exc
            yield from self._leave_out(entry.path)
            return
        self._batch.add(self.sender.announce(entry))
        yield True
        yield from self._content(descriptor, entry, [])

    def _leave_out(self, path: bytes) -> Steps:
        record = LeftOut(path, Why.UNREADABLE)
        self.left_out.append(record)
        self._batch.add(self.sender.leave_out(record))
        yield True

    def _content(self, descriptor: int, entry: Entry, theirs: list[bytes]) -> Steps:
        try:
            content = self._content_hash = ContentHash(chunk_bytes(entry.size))
            ended = yield from self._compared(descriptor, content, chunk_bytes(entry.size), theirs)
            info = os.fstat(descriptor)
            if ended:
                pass
            elif info.st_blocks * 512 < info.st_size:
                yield from self._with_holes(descriptor, content)
            else:
                yield from self._sent(descriptor, content, None)
            self._content_hash = None
            self._batch.add(self.sender.end_file(End(content.size, content.digest())))
            yield True
        except OSError as exc:
            if not entry.path:
                raise copy_error(self._label, entry.path, exc) from exc
            self._content_hash = None  # as if it could not have been opened: it is named, the rest goes on
            self._batch.add(self.sender.end_file(Plain(RecordKind.GONE)))
            yield True
            yield from self._leave_out(entry.path)
        finally:
            os.close(descriptor)

    def _compared(
        self, descriptor: int, content: ContentHash, chunk: int, theirs: list[bytes]
    ) -> Generator[bool, None, bool]:
        """Send what differs of the chunks that the receiver has; return whether that was the end of the file."""
        kept: list[bytes] = []
        kept_bytes = 0
        for their_digest in theirs:
            offset = content.size + kept_bytes
            hole = self._hole_at(descriptor, offset, chunk)
            digest, count = new_digest(), hole
            while not hole and (data := os.pread(descriptor, min(READ_BYTES, chunk - count), offset + count)):
                digest.update(data)
                count += len(data)
                yield True
            if count and (zero_digest(hole) if hole else digest.digest()) == their_digest:
                kept.append(their_digest)
                kept_bytes += count
                continue
            if kept:
                content.keep(kept, kept_bytes)
                self._batch.add(encode_record(Count(RecordKind.KEEP, len(kept))))
                yield True
                kept, kept_bytes = [], 0
            if hole:
                content.zeros(hole)
                self._batch.add(encode_record(Count(RecordKind.HOLE, hole)))
                yield True
            else:
                yield from self._sent(descriptor, content, count)
            if count < chunk:
                return True
        if kept:
            content.keep(kept, kept_bytes)
            self._batch.add(encode_record(Count(RecordKind.KEEP, len(kept))))
            yield True
        return kept_bytes % chunk != 0

    @staticmethod
    def _hole_at(descriptor: int, start: int, chunk: int) -> int:
        """Return the size of the chunk at `start` if it is nothing but a hole, else 0."""
        stop = min(start + chunk, os.fstat(descriptor).st_size)
        return stop - start if stop > start and is_hole(descriptor, start, stop) else 0

    def _sent(self, descriptor: int, content: ContentHash, count: int | None) -> Steps:
        """Send the next `count` bytes, or all to the end of the file: it may be another than when it was listed."""
        while count is None or count:
            data = self._batch.read(descriptor, content.size, count)
            if not data:
                return
            content.update(data)
            count = None if count is None else count - len(data)
            yield True

    def _with_holes(self, descriptor: int, content: ContentHash) -> Steps:
        """Send the rest of a sparse file."""
        while True:
            try:
                start = os.lseek(descriptor, content.size, os.SEEK_DATA)
                end = os.lseek(descriptor, start, os.SEEK_HOLE)
            except OSError as exc:
                if exc.errno != errno.ENXIO:  # a file system that knows no holes
                    yield from self._sent(descriptor, content, None)
                    return
                start = end = os.fstat(descriptor).st_size  # nothing but a hole is left
            if start > content.size:
                hole = start - content.size
                content.zeros(hole)
                self._batch.add(encode_record(Count(RecordKind.HOLE, hole)))
                yield True
            if start == end:
                return
            yield from self._sent(descriptor, content, end - start)
