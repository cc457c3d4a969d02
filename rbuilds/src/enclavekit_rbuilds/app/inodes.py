# SPDX-License-Identifier: Apache-2.0
"""What an app's files are: mode, owner, where their bytes are; and a table of millions of them. Pure.

The table lies in arrays, a number for each file: with its name, some 200 bytes a file, so that a million of them fit
beside the rest of a build in 300 MB. An `Inode` is made when somebody looks.
"""

from __future__ import annotations

import stat
from array import array
from dataclasses import dataclass

MAX_ENTRIES = 4_000_000  # the largest images have a tenth of it


class TreeError(ValueError):
    """An entry that cannot be placed; the message is the cause."""


@dataclass(frozen=True, slots=True)
class Content:
    """Where the bytes of a regular file are: `size` of them from `offset` in the file `path`."""

    path: bytes
    """Empty: the file is at its own place below the tree's `base` directory."""
    offset: int
    size: int


NO_CONTENT = Content(b"", 0, 0)


@dataclass(slots=True)
class Inode:
    """What a name stands for."""

    mode: int
    """Type and permission bits as in st_mode."""
    uid: int = 0
    gid: int = 0
    rdev: tuple[int, int] = (0, 0)
    """Major and minor of a device node."""
    content: Content | bytes = b""
    """Of a regular file, where its bytes are; of a symbolic link, its target."""
    capability: bytes = b""
    """Of a regular file, its `security.capability` attribute."""


def directory(permissions: int = 0o755) -> Inode:
    return Inode(stat.S_IFDIR | permissions)


class InodeTable:
    """Files by number, in the order in which they came; a number is never used again."""

    def __init__(self, base: bytes) -> None:
        """`base` is where contents without a path of their own lie, each at its own place."""
        self.base = base
        self.modes, self._uids, self._gids = array("I"), array("I"), array("I")
        self._sources = array("I")  # index in _paths
        self._offsets, self._sizes = array("Q"), array("Q")
        self._paths: list[bytes] = []
        self._path_index: dict[bytes, int] = {}
        self.targets: dict[int, bytes] = {}
        """Of symbolic links."""
        self.capabilities: dict[int, bytes] = {}

    def add(self, inode: Inode) -> int:
        """Return the new file's number. Raises TreeError if the table is full."""
        number = len(self.modes)
        if number > MAX_ENTRIES:
            raise TreeError(f"there are more than {MAX_ENTRIES} entries")
        for column in (self.modes, self._uids, self._gids, self._sources, self._offsets, self._sizes):
            column.append(0)
        self.replace(number, inode)
        return number

    def replace(self, number: int, inode: Inode) -> None:
        self.modes[number], self._uids[number], self._gids[number] = inode.mode, inode.uid, inode.gid
        if stat.S_ISREG(inode.mode):
            content = inode.content if isinstance(inode.content, Content) else NO_CONTENT
            self._sources[number] = self._index_of(content.path)
            self._offsets[number], self._sizes[number] = content.offset, content.size
        elif stat.S_ISLNK(inode.mode):
            assert isinstance(inode.content, bytes), "a link has a target"
            self.targets[number] = inode.content
        else:
            self._offsets[number] = inode.rdev[0] << 32 | inode.rdev[1]
        if inode.capability:
            self.capabilities[number] = inode.capability

    def get(self, number: int, path: bytes) -> Inode:
        """Return what is known of file `number`, one of whose names is `path`."""
        mode = self.modes[number]
        made = Inode(mode, self._uids[number], self._gids[number])
        if stat.S_ISREG(mode):
            source = self._paths[self._sources[number]] or self.base + b"/" + path
            made.content = Content(source, self._offsets[number], self._sizes[number])
            made.capability = self.capabilities.get(number, b"")
        elif stat.S_ISLNK(mode):
            made.content = self.targets[number]
        else:
            made.rdev = (self._offsets[number] >> 32, self._offsets[number] & 0xFFFFFFFF)
        return made

    def largest(self) -> int:
        """Return the size of the largest file in bytes."""
        return max(self._sizes)

    def _index_of(self, path: bytes) -> int:
        index = self._path_index.get(path)
        if index is None:
            index = self._path_index[path] = len(self._paths)
            self._paths.append(path)
        return index
