# SPDX-License-Identifier: Apache-2.0
"""Reads what is to be copied and makes its records: the sender's hands. Blocking: callers run it in a thread, never two
calls at once.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace

from enclavekit_pipeline.channel.tree_directories import Directories, copy_error
from enclavekit_pipeline.wire.tree_content import ContentHash, chunk_bytes
from enclavekit_pipeline.wire.tree_filter import Selection
from enclavekit_pipeline.wire.tree_order import stays_inside
from enclavekit_pipeline.wire.tree_records import (
    HEADER,
    NO_ID,
    Count,
    End,
    Entry,
    EntryType,
    LeftOut,
    Plain,
    RecordKind,
    Why,
    data_header,
    encode_record,
)
from enclavekit_pipeline.wire.tree_sender import TreeSender, is_large

BATCH_BYTES = 256 * 1024
READ_BYTES = BATCH_BYTES - HEADER.size  # so that a record of content fills whole frames
BATCH_STEPS = 16  # blocks that are compared but not sent also take their time
MAX_HARD_LINKS = 100_000  # files with several names that are kept in mind; beyond, each name is a file of its own
READ_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
# what opening something that was listed may fail with though nothing is wrong: gone, another thing now, not for us
UNREADABLE = (errno.ENOENT, errno.ELOOP, errno.ENXIO, errno.ENOTDIR, errno.EACCES, errno.EPERM)


EVERYTHING = Selection()


@dataclass(frozen=True)
class ReadOptions:
    archive: bool = False
    unsafe_links: bool = False
    delta: bool = False
    resume: bool = False
    selection: Selection = EVERYTHING


@dataclass(frozen=True)
class Batch:
    data: bytes
    waits: bool = False
    """Answers are needed before there is more."""
    finished: bool = False


class TreeSource:
    """One copy's source: a file or a directory, already open, which belongs to this object from now on."""

    def __init__(self, descriptor: int, label: str, options: ReadOptions) -> None:
        self._descriptor, self._label, self._options = descriptor, label, options
        self.sender = TreeSender()
        self._first_names: dict[tuple[int, int], bytes] = {}
        info = os.fstat(descriptor)
        self._root = self._entry_of(b"", info)
        self._directories = Directories(os.dup(descriptor)) if stat.S_ISDIR(info.st_mode) else None
        self._pieces = self._records()
        self._content_hash: ContentHash | None = None
        self.left_out: list[LeftOut] = []
        """Since whoever reports it last looked."""

    def next_batch(self, answers: list[bytes]) -> Batch:
        """Return what to send next. Raises InputError, RemoteProtocolError."""
        for data in answers:
            self.sender.feed(data)
        pieces: list[bytes] = []
        size = steps = 0
        for piece in self._pieces:
            if piece is None:
                return Batch(b"".join(pieces), waits=True)
            pieces.append(piece)
            size += len(piece)
            steps += not piece
            if size >= BATCH_BYTES or steps >= BATCH_STEPS:
                return Batch(b"".join(pieces))
        return Batch(b"".join(pieces), finished=True)

    @property
    def moved(self) -> int:
        """Bytes of content that have been sent, or did not have to be, so far."""
        current = self._content_hash
        return self.sender.size + (current.size if current is not None else 0)

    def measure(self) -> int:
        """Return how many bytes the files of the source have, roughly: for somebody who watches."""
        return sum(entry.size for entry in self._entries() if isinstance(entry, Entry))

    def close(self) -> None:
        """Idempotent."""
        self._pieces.close()
        if self._directories is not None:
            self._directories.close()
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _records(self) -> Generator[bytes | None, None, None]:
        """Yield records; b"" after work that sends nothing, None where an answer is needed."""
        self._first_names.clear()
        sender = self.sender
        for item in self._entries():
            if isinstance(item, LeftOut):
                self.left_out.append(item)
                yield sender.leave_out(item)
                continue
            wanted = self._options.delta or (self._options.resume and is_large(item))
            entry = replace(item, ask=wanted and item.type is EntryType.FILE)
            while not sender.may_announce(entry):
                yield from self._answered_file()
            if entry.type is EntryType.FILE and not entry.ask:
                yield from self._announced_with_content(entry)
            else:
                yield sender.announce(entry)
            while sender.asked is not None and sender.asked.answered:
                yield from self._answered_file()
        while sender.asked is not None:
            yield from self._answered_file()

    def _answered_file(self) -> Iterator[bytes | None]:
        asked = self.sender.asked
        assert asked is not None
        while not asked.answered:
            yield None
        try:
            descriptor = self._open(asked.entry.path)
        except OSError as exc:
            if exc.errno not in UNREADABLE or not asked.entry.path:
                raise copy_error(self._label, asked.entry.path, exc) from exc
            yield self.sender.end_file(Plain(RecordKind.GONE))
            yield self._leave_out(asked.entry.path, Why.UNREADABLE)
            return
        yield from self._content(descriptor, asked.entry, asked.digests)

    def _announced_with_content(self, entry: Entry) -> Iterator[bytes]:
        try:
            descriptor = self._open(entry.path)
        except OSError as exc:
            if exc.errno not in UNREADABLE or not entry.path:
                raise copy_error(self._label, entry.path, exc) from exc
            yield self._leave_out(entry.path, Why.UNREADABLE)
            return
        yield self.sender.announce(entry)
        yield from self._content(descriptor, entry, [])

    def _leave_out(self, path: bytes, why: Why) -> bytes:
        record = LeftOut(path, why)
        self.left_out.append(record)
        return self.sender.leave_out(record)

    def _open(self, path: bytes) -> int:
        if not path:
            return os.dup(self._descriptor)
        assert self._directories is not None
        directory, name = self._directories.locate(path)
        descriptor = os.open(name, READ_FILE, dir_fd=directory)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise OSError(errno.ENXIO, os.strerror(errno.ENXIO))
        return descriptor

    def _content(self, descriptor: int, entry: Entry, theirs: list[bytes]) -> Iterator[bytes]:
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
            yield self.sender.end_file(End(content.size, content.digest()))
        except OSError as exc:
            raise copy_error(self._label, entry.path, exc) from exc
        finally:
            os.close(descriptor)

    def _compared(
        self, descriptor: int, content: ContentHash, chunk: int, theirs: list[bytes]
    ) -> Generator[bytes, None, bool]:
        """Send what differs of the chunks that the receiver has; return whether that was the end of the file."""
        kept: list[bytes] = []
        kept_bytes = 0
        for their_digest in theirs:
            offset = content.size + kept_bytes
            digest, count = hashlib.sha256(), 0
            while data := os.pread(descriptor, min(READ_BYTES, chunk - count), offset + count):
                digest.update(data)
                count += len(data)
                yield b""
            if count and digest.digest() == their_digest:
                kept.append(their_digest)
                kept_bytes += count
                continue
            if kept:
                content.keep(kept, kept_bytes)
                yield encode_record(Count(RecordKind.KEEP, len(kept)))
                kept, kept_bytes = [], 0
            yield from self._sent(descriptor, content, count)
            if count < chunk:
                return True
        if kept:
            content.keep(kept, kept_bytes)
            yield encode_record(Count(RecordKind.KEEP, len(kept)))
        return kept_bytes % chunk != 0

    def _sent(self, descriptor: int, content: ContentHash, count: int | None) -> Iterator[bytes]:
        """Send the next `count` bytes, or all to the end of the file: it may be another than when it was listed."""
        while count is None or count:
            data = os.pread(descriptor, READ_BYTES if count is None else min(READ_BYTES, count), content.size)
            if not data:
                return
            content.update(data)
            count = None if count is None else count - len(data)
            yield data_header(len(data))
            yield data

    def _with_holes(self, descriptor: int, content: ContentHash) -> Iterator[bytes]:
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
                yield encode_record(Count(RecordKind.HOLE, hole))
            if start == end:
                return
            yield from self._sent(descriptor, content, end - start)

    def _entries(self) -> Iterator[Entry | LeftOut]:
        """Walk the tree: each directory before what is in it, siblings sorted by name."""
        yield self._root
        if self._directories is not None:
            yield from self._in_directory(b"")

    def _in_directory(self, above: bytes) -> Iterator[Entry | LeftOut]:
        # a stack, not recursion: trees may be deeper than Python's own
        pending = [(above, iter(self._names(above)))]
        unmade: list[Entry] = []  # with --include, directories are made for what is in them
        options = self._options
        while pending:
            directory, names = pending[-1]
            name = next(names, None)
            if name is None:
                pending.pop()
                if unmade and unmade[-1].path == directory:
                    unmade.pop()
                continue
            path = directory + b"/" + name if directory else name
            item = None if options.selection.excludes(path) else self._look_at(path)
            if item is None or (not _is_directory(item) and not options.selection.includes(path)):
                continue
            if isinstance(item, Entry) and item.type is EntryType.DIRECTORY:
                pending.append((path, iter(self._names(path))))
                if options.selection.picks and not options.selection.includes(path):
                    unmade.append(item)
                    continue
            yield from unmade
            unmade.clear()
            yield item

    def _names(self, path: bytes) -> list[bytes]:
        assert self._directories is not None
        try:
            with os.scandir(self._directories.get(path)) as found:
                return sorted(os.fsencode(entry.name) for entry in found)
        except OSError as exc:
            raise copy_error(self._label, path, exc) from exc

    def _look_at(self, path: bytes) -> Entry | LeftOut | None:
        """Return what is there; None if it is gone."""
        assert self._directories is not None
        try:
            directory, name = self._directories.locate(path)
            info = os.stat(name, dir_fd=directory, follow_symlinks=False)
            if stat.S_ISLNK(info.st_mode):
                target = os.readlink(name, dir_fd=directory)
                if not self._options.unsafe_links and not stays_inside(path, target):
                    return LeftOut(path, Why.LEADS_OUT)
                return replace(self._entry_of(path, info), type=EntryType.SYMLINK, size=0, target=target)
        except FileNotFoundError:
            return None
        except OSError as exc:
            raise copy_error(self._label, path, exc) from exc
        if not stat.S_ISREG(info.st_mode) and not stat.S_ISDIR(info.st_mode):
            return LeftOut(path, Why.SPECIAL)
        entry = self._entry_of(path, info)
        if entry.type is EntryType.FILE and info.st_nlink > 1:
            first = self._first_names.get((info.st_dev, info.st_ino))
            if first is not None:
                return replace(entry, type=EntryType.HARDLINK, size=0, target=first)
            if len(self._first_names) < MAX_HARD_LINKS:
                self._first_names[info.st_dev, info.st_ino] = path
        return entry

    def _entry_of(self, path: bytes, info: os.stat_result) -> Entry:
        is_directory = stat.S_ISDIR(info.st_mode)
        return Entry(
            type=EntryType.DIRECTORY if is_directory else EntryType.FILE,
            path=path,
            mode=stat.S_IMODE(info.st_mode),
            uid=info.st_uid if self._options.archive else NO_ID,
            gid=info.st_gid if self._options.archive else NO_ID,
            mtime_ns=info.st_mtime_ns,
            size=0 if is_directory else info.st_size,
        )


def _is_directory(item: Entry | LeftOut) -> bool:
    return isinstance(item, Entry) and item.type is EntryType.DIRECTORY
