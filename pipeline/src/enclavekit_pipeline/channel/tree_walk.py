# SPDX-License-Identifier: Apache-2.0
"""What there is to copy: the entries of a tree, each directory before what is in it, siblings by name. Blocking."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, replace

from enclavekit_pipeline.channel.tree_directories import Directories, copy_error
from enclavekit_pipeline.wire.tree_filter import Selection
from enclavekit_pipeline.wire.tree_order import stays_inside
from enclavekit_pipeline.wire.tree_records import NO_ID, Entry, EntryType, LeftOut, Why

MAX_HARD_LINKS = 100_000  # files with several names that are kept in mind; beyond, each name is a file of its own
READ_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
EVERYTHING = Selection()


@dataclass(frozen=True)
class ReadOptions:
    archive: bool = False
    unsafe_links: bool = False
    delta: bool = False
    resume: bool = False
    selection: Selection = EVERYTHING


class TreeWalk:
    """Of a file or a directory, already open, which belongs to this object from now on."""

    def __init__(self, descriptor: int, label: str, options: ReadOptions) -> None:
        self._descriptor, self._label, self._options = descriptor, label, options
        self._first_names: dict[tuple[int, int], bytes] = {}
        info = os.fstat(descriptor)
        self._root = self._entry_of(b"", info)
        self._directories = Directories(os.dup(descriptor)) if stat.S_ISDIR(info.st_mode) else None

    def close(self) -> None:
        """Idempotent."""
        if self._directories is not None:
            self._directories.close()
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def open(self, path: bytes) -> int:
        """Return a descriptor of a file that was listed. Raises OSError, also if it is another thing by now."""
        if not path:
            return os.dup(self._descriptor)
        assert self._directories is not None
        directory, name = self._directories.locate(path)
        descriptor = os.open(name, READ_FILE, dir_fd=directory)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise OSError(errno.ENXIO, os.strerror(errno.ENXIO))
        return descriptor

    def entries(self) -> Iterator[Entry | LeftOut]:
        """List what is there now. Raises InputError."""
        self._first_names.clear()
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
