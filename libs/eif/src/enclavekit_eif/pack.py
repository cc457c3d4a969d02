# SPDX-License-Identifier: Apache-2.0
"""Write newc archives whose bytes depend on their content only.

Entries are sorted by name, inode numbers count up from 1 in that order, all have one mtime, device numbers are 0.
Hard links stay hard links: the first name carries the data. Parents that nobody added appear as root's, mode 0755.
Extended attributes, ACLs and file capabilities have no place in newc and are left out.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO

from enclavekit_core.errors import InputError, describe_cause

from enclavekit_eif.extract import clean_name
from enclavekit_eif.newc import (
    CHUNK_BYTES,
    HEADER_BYTES,
    MAGIC,
    MAX_FILE_BYTES,
    MAX_LINK_BYTES,
    MAX_NAME_BYTES,
    TRAILER,
    describe_name,
    padding,
)

Owner = tuple[int, int] | Callable[[os.stat_result], tuple[int, int]]
"""(uid, gid) for all, or a function of each file's lstat result."""


@dataclass(slots=True)
class _Entry:
    mode: int
    uid: int
    gid: int
    size: int
    source: bytes
    """Path of a file to copy if `from_path`, else the data itself."""
    from_path: bool = False
    rdev: int = 0
    link_key: object = None
    """Equal keys are names of one file."""


@dataclass(frozen=True, slots=True)
class Packed:
    entries: int
    size_bytes: int
    """Of the archive."""


def encode_header(
    name: bytes, inode: int, mode: int, owner: tuple[int, int], nlink: int, mtime: int, size: int, rdev: int = 0
) -> bytes:
    """Return what stands before an entry's data, padding included; `padding(size)` zeros have to follow the data."""
    fields = (inode, mode, *owner, nlink, mtime, size, 0, 0, os.major(rdev), os.minor(rdev), len(name) + 1, 0)
    text = b"".join(b"%08X" % field for field in fields)
    assert len(text) == HEADER_BYTES - len(MAGIC), "a field is wider than 32 bits"
    header = MAGIC + text + name + b"\0"
    return header + bytes(padding(len(header)))


class CpioWriter:
    """Collect entries in any order, then write them sorted: `with CpioWriter(out) as archive: archive.add_file(...)`.

    A name that is added again replaces the earlier one, as it would when unpacked. A leading `/` is dropped.
    Files given by path are read when the archive is written. An exception inside the `with` block writes nothing.
    """

    def __init__(self, out: BinaryIO, mtime: int = 0) -> None:
        """`mtime` is that of every entry, in seconds since 1970."""
        self._out = out
        self._mtime = mtime
        self._entries: dict[bytes, _Entry] = {}

    def add_directory(self, name: bytes, mode: int = 0o755, uid: int = 0, gid: int = 0) -> None:
        self._put(name, _Entry(stat.S_IFDIR | mode, uid, gid, 0, b""))

    def add_file(self, name: bytes, data: bytes, mode: int = 0o644, uid: int = 0, gid: int = 0) -> None:
        self._put(name, _Entry(stat.S_IFREG | mode, uid, gid, len(data), data))

    def add_path(
        self, name: bytes, path: str | bytes | os.PathLike[str], *, mode: int | None = None, owner: Owner | None = None
    ) -> None:
        """Add what is at `path`: a link as a link, a directory without its content. `mode`, `owner` None: as on disk.

        Raises: InputError if it cannot be read or is a socket.
        """
        raw = os.fsencode(path)
        try:
            status = os.lstat(raw)
            source = os.readlink(raw) if stat.S_ISLNK(status.st_mode) else raw
        except OSError as exc:
            raise InputError("pack", os.fsdecode(raw), describe_cause(exc)) from exc
        self._add_status(name, source, status, mode, owner)

    def add_symlink(self, name: bytes, target: bytes, uid: int = 0, gid: int = 0) -> None:
        self._put(name, _Entry(stat.S_IFLNK | 0o777, uid, gid, len(target), target))

    def add_node(self, name: bytes, mode: int, rdev: int = 0, uid: int = 0, gid: int = 0) -> None:
        """Add a device node or FIFO; `mode` with its file type."""
        self._put(name, _Entry(mode, uid, gid, 0, b"", rdev=rdev))

    def add_tree(self, root: str | bytes | os.PathLike[str], prefix: bytes = b"", owner: Owner | None = None) -> None:
        """Add everything below `root` under `prefix`, the directory itself included. Links are not followed."""
        top = os.fsencode(root)
        try:
            status = os.stat(top)
            if not stat.S_ISDIR(status.st_mode):
                raise InputError("pack", os.fsdecode(top), "not a directory")
            if clean_name(prefix):  # the root of an archive has no entry
                self._add_status(prefix, top, status, None, owner)
            self._add_children(top, prefix, owner)
        except OSError as exc:
            raise InputError("pack", os.fsdecode(top), describe_cause(exc)) from exc

    def _add_children(self, top: bytes, prefix: bytes, owner: Owner | None) -> None:
        pending = [(top, prefix)]
        while pending:
            directory, name = pending.pop()
            with os.scandir(directory) as children:
                for child in children:
                    status = child.stat(follow_symlinks=False)
                    child_name = name + b"/" + child.name if name else child.name
                    source = os.readlink(child.path) if stat.S_ISLNK(status.st_mode) else child.path
                    self._add_status(child_name, source, status, None, owner)
                    if stat.S_ISDIR(status.st_mode):
                        pending.append((child.path, child_name))

    def _add_status(
        self, name: bytes, source: bytes, status: os.stat_result, mode: int | None, owner: Owner | None
    ) -> None:
        kind = stat.S_IFMT(status.st_mode)
        if kind == stat.S_IFSOCK:
            raise InputError("pack", os.fsdecode(source), "a socket")
        full_mode = status.st_mode if mode is None else kind | mode
        uid, gid = (status.st_uid, status.st_gid) if owner is None else owner(status) if callable(owner) else owner
        entry = _Entry(full_mode, uid, gid, 0, b"")
        if kind == stat.S_IFREG:
            entry.size, entry.source, entry.from_path = status.st_size, source, True
            if status.st_nlink > 1:
                # names that differ in mode or owner cannot be one file
                entry.link_key = (status.st_dev, status.st_ino, full_mode, uid, gid)
        elif kind == stat.S_IFLNK:
            entry.size, entry.source = len(source), source
        elif kind != stat.S_IFDIR:
            entry.rdev = status.st_rdev
        self._put(name, entry)

    def _put(self, name: bytes, entry: _Entry) -> None:
        cleaned = clean_name(name)
        if not cleaned or b"\0" in cleaned or len(cleaned) + 1 > MAX_NAME_BYTES or cleaned == TRAILER:
            raise InputError("pack", describe_name(name) or "an entry", "a name that an archive cannot hold")
        if entry.size > (MAX_LINK_BYTES if stat.S_ISLNK(entry.mode) else MAX_FILE_BYTES):
            raise InputError("pack", describe_name(name), f"{entry.size} bytes are more than an archive can hold")
        self._entries[cleaned] = entry

    def close(self) -> Packed:
        """Write the archive. Raises InputError if a file cannot be read or has changed since it was added."""
        self._add_parents()
        links = Counter(entry.link_key for entry in self._entries.values() if entry.link_key is not None)
        inodes: dict[object, int] = {}
        total, next_inode = 0, 1
        for name, entry in sorted(self._entries.items()):
            inode, size = next_inode, entry.size
            if entry.link_key is not None and entry.link_key in inodes:
                inode, size = inodes[entry.link_key], 0
            else:
                next_inode += 1
                inodes[entry.link_key] = inode
            nlink = 2 if stat.S_ISDIR(entry.mode) else links.get(entry.link_key, 1)
            total += self._write_header(name, entry, inode, nlink, size)
            if size:
                self._write_data(entry)
                total += size + self._write(bytes(padding(size)))
        total += self._write_header(TRAILER, _Entry(0, 0, 0, 0, b""), 0, 1, 0, mtime=0)
        return Packed(len(self._entries), total)

    def _add_parents(self) -> None:
        for name in list(self._entries):
            parent = name.rpartition(b"/")[0]
            while parent and parent not in self._entries:
                self._entries[parent] = _Entry(stat.S_IFDIR | 0o755, 0, 0, 0, b"")
                parent = parent.rpartition(b"/")[0]
            if parent and not stat.S_ISDIR(self._entries[parent].mode):
                raise InputError("pack", describe_name(name), f"its parent {describe_name(parent)} is not a directory")

    def _write_header(
        self, name: bytes, entry: _Entry, inode: int, nlink: int, size: int, mtime: int | None = None
    ) -> int:
        owner, time = (entry.uid, entry.gid), self._mtime if mtime is None else mtime
        return self._write(encode_header(name, inode, entry.mode, owner, nlink, time, size, entry.rdev))

    def _write_data(self, entry: _Entry) -> None:
        if not entry.from_path:
            self._write(entry.source)
            return
        path = os.fsdecode(entry.source)
        try:
            fd = os.open(entry.source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as exc:
            raise InputError("pack", path, describe_cause(exc)) from exc
        try:
            left = entry.size
            while left and (chunk := os.read(fd, min(left, CHUNK_BYTES))):
                self._write(chunk)
                left -= len(chunk)
            if left or os.fstat(fd).st_size != entry.size:
                raise InputError("pack", path, "it changed while it was read")
        except OSError as exc:
            raise InputError("pack", path, describe_cause(exc)) from exc
        finally:
            os.close(fd)

    def _write(self, data: bytes) -> int:
        self._out.write(data)
        return len(data)

    def __enter__(self) -> CpioWriter:
        return self

    def __exit__(self, exc_type: object, *_exc: object) -> None:
        if exc_type is None:
            self.close()


def pack_tree(
    root: str | bytes | os.PathLike[str],
    out: BinaryIO,
    *,
    prefix: bytes = b"",
    owner: Owner | None = None,
    mtime: int = 0,
) -> Packed:
    """Write everything below the directory `root` to `out` as one archive, under `prefix`.

    Args:
        owner: (uid, gid) for all, a function of the lstat result, or None to keep what is on disk.
    """
    archive = CpioWriter(out, mtime)
    archive.add_tree(root, prefix, owner)
    return archive.close()
