# SPDX-License-Identifier: Apache-2.0
"""An app's root file system as a tree in memory; file contents stay on disk. Pure.

Paths come from archives that nobody vouches for. Every lookup happens inside the tree with the tree's own symbolic
links, as a chroot would do it, so no path, `..` or absolute link can name anything outside.

What a file is lies in a table; a directory maps names to the numbers of files there. A `Node` is made when somebody
looks.
"""

from __future__ import annotations

import heapq
import stat
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from enclavekit_rbuilds.app.inodes import Content, Inode, InodeTable, TreeError, directory

MAX_LAYERS = 1024  # engines stop at 127
MAX_LINKS_FOLLOWED = 40  # as Linux: MAXSYMLINKS
MAX_PATH_BYTES = 4095  # PATH_MAX without its NUL
MAX_NAME_BYTES = 255  # NAME_MAX
LAYER_BITS = 11  # of a directory's value; the rest is the number of the file
LAYER_MASK = (1 << LAYER_BITS) - 1

Path = tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Node:
    """A name in the tree, as it was when it was looked up."""

    tree: AppTree
    number: int
    """Equal for hard links to one file."""
    path: bytes
    """From the root, without links; empty for the root."""

    @property
    def inode(self) -> Inode:
        return self.tree.files.get(self.number, self.path)

    @property
    def mode(self) -> int:
        return self.tree.files.modes[self.number]

    @property
    def content(self) -> Content | None:
        """Of a regular file."""
        content = self.inode.content
        return content if isinstance(content, Content) else None

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.mode)

    @property
    def is_symlink(self) -> bool:
        return stat.S_ISLNK(self.mode)

    @property
    def children(self) -> list[bytes]:
        """Names in a directory, unordered; nothing for anything else."""
        return list(self.tree.directories.get(self.number, ()))


def split_path(raw: bytes) -> Path:
    """Return the components of an archive member's name; `./` and a leading `/` are dropped.

    Raises: TreeError for `..`, NUL and lengths that no Linux file system has.
    """
    parts = tuple(part for part in raw.split(b"/") if part not in (b"", b"."))
    if b".." in parts:
        raise TreeError("its path leads out with ..")
    if b"\0" in raw:
        raise TreeError("its path holds a NUL byte")
    if len(raw) > MAX_PATH_BYTES or any(len(part) > MAX_NAME_BYTES for part in parts):
        raise TreeError("its path is too long")
    return parts


class AppTree:
    """The tree; `place` and the removals apply an archive's entries in their order.

    A directory's value for a name is the file's number and the layer the name comes from: whiteouts hide lower layers.
    """

    def __init__(self, base: bytes = b"") -> None:
        """`base` is where contents without a path of their own lie, each at its own place."""
        self.files = InodeTable(base)
        self._linked: set[int] = set()  # files with more than one name, at some time
        self.directories: dict[int, dict[bytes, int]] = {}
        self._new(directory())

    @property
    def root(self) -> Node:
        return Node(self, 0, b"")

    def place(self, path: Path, inode: Inode, layer: int = 0) -> int:
        """Put `inode` at `path`; missing parents become directories of root, symbolic links on the way are followed.

        Returns: the number of the file.
        Raises: TreeError if a parent is no directory or the tree is full.
        """
        if not path:
            if not stat.S_ISDIR(inode.mode):
                raise TreeError("it replaces the root directory")
            self.files.replace(0, inode)
            return 0
        names = self.directories[self._parent_for(path, layer)]
        old = names.get(path[-1])
        if old is not None and old >> LAYER_BITS in self.directories:
            number = old >> LAYER_BITS
            if stat.S_ISDIR(inode.mode):
                self.files.replace(number, inode)
                names[path[-1]] = number << LAYER_BITS | layer
                return number
            self._forget(number)
        number = self._new(inode)
        names[path[-1]] = number << LAYER_BITS | layer
        return number

    def link(self, path: Path, node: Node, layer: int = 0) -> None:
        """Make `path` another name of the file `node`. Raises TreeError, also for a directory."""
        if node.is_directory:
            raise TreeError("it is a hard link to a directory")
        if not path:
            raise TreeError("it replaces the root directory")
        names = self.directories[self._parent_for(path, layer)]
        old = names.get(path[-1])
        if old is not None and old >> LAYER_BITS in self.directories:
            self._forget(old >> LAYER_BITS)
        names[path[-1]] = node.number << LAYER_BITS | layer
        self._linked.add(node.number)

    def hide(self, path: Path, layer: int) -> None:
        """Remove what lower layers have at `path` (whiteout). Nothing there is fine, as in every container engine."""
        parent = self.resolve(path[:-1])
        names = self.directories.get(parent.number, {}) if parent is not None else {}
        value = names.get(path[-1])
        if value is None:
            return
        stays = self._hide_below(value >> LAYER_BITS, layer)
        if not stays and value & LAYER_MASK < layer:
            del names[path[-1]]
            self.directories.pop(value >> LAYER_BITS, None)

    def hide_children(self, path: Path, layer: int) -> None:
        """Remove what lower layers have inside the directory `path` (opaque whiteout)."""
        node = self.resolve(path)
        if node is not None:
            self._hide_below(node.number, layer)

    def find(self, path: Path) -> Node | None:
        """Return what is at `path`, a symbolic link itself if that is what is there; None if nothing is."""
        if not path:
            return self.root
        parent = self.resolve(path[:-1])
        value = self.directories.get(parent.number, {}).get(path[-1]) if parent is not None else None
        if parent is None or value is None:
            return None
        return Node(self, value >> LAYER_BITS, _join(parent.path, path[-1]))

    def resolve(self, path: Path) -> Node | None:
        """Return what `path` leads to, symbolic links followed inside the tree; None if it leads nowhere."""
        pending = list(reversed(path))
        trail: list[tuple[int, bytes]] = [(0, b"")]
        links = 0
        while pending:
            name = pending.pop()
            names = self.directories.get(trail[-1][0])
            if names is None:  # a file on the way, be it to `..`
                return None
            if name in (b"", b"."):
                continue
            if name == b"..":
                if len(trail) > 1:
                    trail.pop()
                continue
            value = names.get(name)
            if value is None:
                return None
            number = value >> LAYER_BITS
            target = self.files.targets.get(number)
            if target is None:
                trail.append((number, name))
                continue
            links += 1
            if links > MAX_LINKS_FOLLOWED:
                return None
            if target.startswith(b"/"):
                del trail[1:]
            pending.extend(reversed(target.split(b"/")))
        return Node(self, trail[-1][0], b"/".join(name for _, name in trail[1:]))

    def walk(self) -> Iterator[Node]:
        """Yield everything but the root, in the byte order of full paths: parents come before what is in them."""
        queue: list[tuple[bytes, int, Iterator[tuple[bytes, int]]]] = []
        self._enqueue(queue, self._entries(0, b""))
        while queue:
            path, value, siblings = heapq.heappop(queue)
            self._enqueue(queue, siblings)
            number = value >> LAYER_BITS
            yield Node(self, number, path)
            if number in self.directories:
                self._enqueue(queue, self._entries(number, path + b"/"))

    def has_larger(self, size: int) -> bool:
        """Say whether a file may have more than `size` bytes."""
        return self.files.largest() > size

    def capabilities(self) -> Iterator[tuple[Node, bytes]]:
        """Yield each file with capabilities, once, and their value."""
        pending = dict(self.files.capabilities)
        if pending:
            for node in self.walk():
                if value := pending.pop(node.number, b""):
                    yield node, value

    def link_counts(self) -> Counter[int]:
        """Return how many names each file has that has more than one."""
        counts: Counter[int] = Counter()
        if self._linked:
            for names in self.directories.values():
                counts.update(v >> LAYER_BITS for v in names.values() if v >> LAYER_BITS in self._linked)
        return Counter({number: count for number, count in counts.items() if count > 1})

    def _entries(self, number: int, prefix: bytes) -> Iterator[tuple[bytes, int]]:
        return ((prefix + name, value) for name, value in sorted(self.directories[number].items()))

    @staticmethod
    def _enqueue(
        queue: list[tuple[bytes, int, Iterator[tuple[bytes, int]]]], siblings: Iterator[tuple[bytes, int]]
    ) -> None:
        """Put the first of `siblings` into the queue, with what comes after it: paths differ, so order is total."""
        first = next(siblings, None)
        if first is not None:
            heapq.heappush(queue, (*first, siblings))

    def _new(self, inode: Inode) -> int:
        number = self.files.add(inode)
        if stat.S_ISDIR(inode.mode):
            self.directories[number] = {}
        return number

    def _parent_for(self, path: Path, layer: int) -> int:
        here = 0
        for depth, name in enumerate(path[:-1]):
            names = self.directories[here]
            value = names.get(name)
            if value is None:
                here = self._new(directory())
                names[name] = here << LAYER_BITS | layer
                continue
            here = value >> LAYER_BITS
            if here in self.files.targets:
                target = self.resolve(path[: depth + 1])
                if target is None:
                    raise TreeError(f"{b'/'.join(path[: depth + 1])!r} is a link to nowhere")
                here = target.number
            if here not in self.directories:
                raise TreeError(f"{b'/'.join(path[: depth + 1])!r} is not a directory")
        return here

    def _hide_below(self, number: int, layer: int) -> bool:
        """Remove descendants of lower layers; return whether one of this layer stays (then its parents stay too)."""
        order = list(self._below(number))
        for here in reversed(order):
            names = self.directories[here]
            gone = [
                name
                for name, value in names.items()
                if value & LAYER_MASK < layer and not self.directories.get(value >> LAYER_BITS)
            ]
            for name in gone:
                self.directories.pop(names.pop(name) >> LAYER_BITS, None)
        return bool(self.directories.get(number))

    def _below(self, number: int) -> Iterable[int]:
        """Yield the directory `number` and all directories in it, parents first; nothing for a file."""
        pending = [number]
        while pending:
            here = pending.pop()
            names = self.directories.get(here)
            if names is not None:
                yield here
                pending.extend(value >> LAYER_BITS for value in names.values())

    def _forget(self, number: int) -> None:
        for here in list(self._below(number)):
            del self.directories[here]


def _join(parent: bytes, name: bytes) -> bytes:
    return parent + b"/" + name if parent else name
