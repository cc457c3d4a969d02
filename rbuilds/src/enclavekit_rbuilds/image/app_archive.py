# SPDX-License-Identifier: Apache-2.0
"""Write an app's tree and what lies beside it as one newc archive, in one pass and in the order of names.

Nothing is collected: names come sorted from the tree, contents go from disk to the archive in chunks. What newc cannot
hold, files above its limit and file capabilities, goes into a list for PID 1 (enclavekit_core.split_files).
"""

from __future__ import annotations

import hashlib
import heapq
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import BinaryIO

from enclavekit_core.errors import InputError
from enclavekit_core.split_files import LIST_PATH, PARTS_DIR, FileCapability, FileList, SplitFile, encode_file_list
from enclavekit_eif.newc import MAX_LINK_BYTES, MAX_NAME_BYTES, TRAILER, describe_name, padding
from enclavekit_eif.pack import encode_header

from enclavekit_rbuilds.app.inodes import Content
from enclavekit_rbuilds.app.tree import AppTree, Node
from enclavekit_rbuilds.image.sources import Sources

APP_PREFIX = b"rootfs"
# the largest multiple of a page that fits newc's 32-bit size field
MAX_PART_BYTES = (1 << 32) - 4096
BUFFER_BYTES = 1 << 18


@dataclass(frozen=True, slots=True)
class AppFile:
    """A file that ramdisk 1 holds beside the app's root; without content it is a directory."""

    name: bytes
    content: bytes | None
    uid: int = 0
    gid: int = 0


@dataclass(slots=True)
class _Entry:
    """One entry of the archive that is about to be written."""

    name: bytes
    mode: int
    owner: tuple[int, int]
    data: bytes | Content = b""
    rdev: int = 0
    number: int = -1
    """Of the tree's file; -1 for what is beside the tree."""


class AppArchive:
    """Writes one archive. The same tree and files give the same bytes."""

    def __init__(self, out: BinaryIO, max_part_bytes: int = MAX_PART_BYTES) -> None:
        """`max_part_bytes` is the size above which a file is split; tests make it small."""
        self._out = out
        self._max_part_bytes = max_part_bytes
        self._next_inode = 1
        self._size = 0
        self._buffer = bytearray()
        self._sources = Sources(b"")

    def write(self, tree: AppTree, files: Sequence[AppFile]) -> int:
        """Write everything; return the archive's size in bytes. Raises InputError for what cannot be read or packed."""
        self._sources = Sources(tree.files.base)
        try:
            links = tree.link_counts()
            split = self._plan_split(tree)
            beside = [*files, *self._list_file(tree, split)]
            numbers: dict[int, int] = {}
            parts = self._part_entries(split)
            for entry in heapq.merge(
                _beside_entries(beside), _tree_entries(tree, split), parts, key=lambda entry: entry.name
            ):
                self._write_entry(entry, links.get(entry.number, 1), numbers)
            self._write(encode_header(TRAILER, 0, 0, (0, 0), 1, 0, 0))
            self._out.write(self._buffer)
            self._sources.check()
        finally:
            self._sources.close()
        return self._size

    def _write_entry(self, entry: _Entry, names: int, numbers: dict[int, int]) -> None:
        """Write one entry; of a file with several names, the first carries the data."""
        if len(entry.name) + 1 > MAX_NAME_BYTES:
            raise InputError("pack", describe_name(entry.name), f"its path has more than {MAX_NAME_BYTES - 1} bytes")
        inode, data = numbers.get(entry.number, 0) if names > 1 else 0, entry.data
        if inode:
            data = b""
        else:
            inode = self._next_inode
            self._next_inode += 1
            if names > 1:
                numbers[entry.number] = inode
        size = data.size if isinstance(data, Content) else len(data)
        links = 2 if stat.S_ISDIR(entry.mode) else names
        self._write(encode_header(entry.name, inode, entry.mode, entry.owner, links, 0, size, entry.rdev))
        if isinstance(data, Content):
            for chunk in self._sources.chunks(data):
                self._write(chunk)
        else:
            self._write(data)
        self._write(bytes(padding(size)))

    def _write(self, data: bytes) -> None:
        """Hand headers and small files on together: a compressor's calls cost more than a copy."""
        self._size += len(data)
        if len(data) < BUFFER_BYTES:
            self._buffer += data
            if len(self._buffer) < BUFFER_BYTES:
                return
            data = b""
        if self._buffer:
            self._out.write(self._buffer)
            self._buffer = bytearray()
        if data:
            self._out.write(data)

    def _plan_split(self, tree: AppTree) -> dict[int, tuple[Node, SplitFile]]:
        """Return, for each file above the limit, how it is split; its content is read once for the hash."""
        planned: dict[int, tuple[Node, SplitFile]] = {}
        if not tree.has_larger(self._max_part_bytes):
            return planned
        for node in tree.walk():
            content = node.content
            if content is None or content.size <= self._max_part_bytes:
                continue
            name = _inside(node.path)
            if node.number in planned:
                first, file = planned[node.number]
                planned[node.number] = first, _with_name(file, name)
                continue
            digest = hashlib.sha256()
            for chunk in self._sources.chunks(content):
                digest.update(chunk)
            inode = node.inode
            count = -(-content.size // self._max_part_bytes)
            folder = f"{PARTS_DIR}/{len(planned):04d}"
            planned[node.number] = (
                node,
                SplitFile(
                    names=(name,),
                    size=content.size,
                    sha256=digest.hexdigest(),
                    mode=stat.S_IMODE(inode.mode),
                    uid=inode.uid,
                    gid=inode.gid,
                    mtime=0,
                    parts=tuple(f"{folder}/{part:04d}" for part in range(count)),
                ),
            )
        return planned

    def _part_entries(self, split: dict[int, tuple[Node, SplitFile]]) -> Iterator[_Entry]:
        if split:
            yield _Entry(PARTS_DIR.encode()[1:], stat.S_IFDIR | 0o700, (0, 0))
        for node, file in split.values():
            content = node.content
            assert content is not None  # only files are split
            yield _Entry(os.path.dirname(file.parts[0]).encode()[1:], stat.S_IFDIR | 0o700, (0, 0))
            for number, part in enumerate(file.parts):
                start = number * self._max_part_bytes
                size = min(self._max_part_bytes, content.size - start)
                piece = Content(content.path, content.offset + start, size)
                yield _Entry(part.encode()[1:], stat.S_IFREG | 0o600, (0, 0), piece)

    @staticmethod
    def _list_file(tree: AppTree, split: dict[int, tuple[Node, SplitFile]]) -> list[AppFile]:
        """Return the list for PID 1; none if there is nothing to say."""
        capabilities = tuple(FileCapability(_inside(node.path), value.hex()) for node, value in tree.capabilities())
        if not split and not capabilities:
            return []
        listed = FileList(tuple(file for _, file in split.values()), capabilities)
        return [AppFile(LIST_PATH.encode()[1:], encode_file_list(listed))]


def _tree_entries(tree: AppTree, split: dict[int, tuple[Node, SplitFile]]) -> Iterator[_Entry]:
    root = tree.root.inode
    yield _Entry(APP_PREFIX, root.mode, (root.uid, root.gid))
    for node in tree.walk():
        if node.number in split:
            continue
        inode = node.inode
        data = inode.content
        if isinstance(data, bytes) and len(data) > MAX_LINK_BYTES:
            raise InputError("pack", describe_name(node.path), "its target is too long")
        yield _Entry(
            APP_PREFIX + b"/" + node.path,
            inode.mode,
            (inode.uid, inode.gid),
            data,
            os.makedev(*inode.rdev),
            node.number,
        )


def _beside_entries(files: Sequence[AppFile]) -> list[_Entry]:
    """Return the files beside the tree, and the directories that they are in, by name."""
    entries: dict[bytes, _Entry] = {}
    for file in files:
        parent = os.path.dirname(file.name)
        while parent and parent not in entries:
            entries[parent] = _Entry(parent, stat.S_IFDIR | 0o755, (0, 0))
            parent = os.path.dirname(parent)
        mode = stat.S_IFDIR | 0o755 if file.content is None else stat.S_IFREG | 0o644
        entries[file.name] = _Entry(file.name, mode, (file.uid, file.gid), file.content or b"")
    return [entries[name] for name in sorted(entries)]


def _with_name(file: SplitFile, name: str) -> SplitFile:
    return replace(file, names=(*file.names, name))


def _inside(path: bytes) -> str:
    return "/" + (APP_PREFIX + b"/" + path).decode("utf-8", "surrogateescape")
