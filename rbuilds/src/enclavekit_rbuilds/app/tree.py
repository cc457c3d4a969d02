# SPDX-License-Identifier: Apache-2.0
"""An app's root file system as a tree in memory; file contents stay on disk. Pure.

Paths come from archives that nobody vouches for. Every lookup happens inside the tree with the tree's own symbolic
links, as a chroot would do it, so no path, `..` or absolute link can name anything outside.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from dataclasses import dataclass, field

MAX_ENTRIES = 4_000_000  # the largest images have a tenth of it; a node costs about 400 bytes
MAX_LINKS_FOLLOWED = 40  # as Linux: MAXSYMLINKS
MAX_PATH_BYTES = 4095  # PATH_MAX without its NUL
MAX_NAME_BYTES = 255  # NAME_MAX

Path = tuple[bytes, ...]


class TreeError(ValueError):
    """An entry that cannot be placed; the message is the cause."""


@dataclass(slots=True)
class Inode:
    """What a name stands for. Hard links are names whose contents are hard links on disk."""

    mode: int
    """Type and permission bits as in st_mode."""
    uid: int = 0
    gid: int = 0
    rdev: tuple[int, int] = (0, 0)
    """Major and minor of a device node."""
    content: str | bytes = b""
    """Of a regular file, where its bytes lie on disk; of a symbolic link, its target."""


@dataclass(slots=True)
class Node:
    """One name in a directory."""

    inode: Inode
    layer: int
    """Number of the layer it comes from; whiteouts hide lower ones only."""
    children: dict[bytes, Node] = field(default_factory=dict)

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.inode.mode)

    @property
    def is_symlink(self) -> bool:
        return stat.S_ISLNK(self.inode.mode)


def directory(permissions: int = 0o755) -> Inode:
    return Inode(stat.S_IFDIR | permissions)


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
    """The tree; `place` and the removals apply an archive's entries in their order."""

    def __init__(self) -> None:
        self.root = Node(directory(), 0)
        self._count = 0

    def place(self, path: Path, inode: Inode, layer: int = 0) -> None:
        """Put `inode` at `path`; missing parents become directories of root, symbolic links on the way are followed.

        Raises: TreeError if a parent is no directory or the tree is full.
        """
        if not path:
            if not stat.S_ISDIR(inode.mode):
                raise TreeError("it replaces the root directory")
            self.root.inode = inode
            return
        parent = self._parent_for(path, layer)
        old = parent.children.get(path[-1])
        if old is not None and old.is_directory and stat.S_ISDIR(inode.mode):
            old.inode, old.layer = inode, layer
            return
        self._count += 1
        if self._count > MAX_ENTRIES:
            raise TreeError(f"there are more than {MAX_ENTRIES} entries")
        parent.children[path[-1]] = Node(inode, layer)

    def hide(self, path: Path, layer: int) -> None:
        """Remove what lower layers have at `path` (whiteout). Nothing there is fine, as in every container engine."""
        parent = self.resolve(path[:-1])
        node = parent.children.get(path[-1]) if parent is not None else None
        if parent is None or node is None:
            return
        if not self._hide_below(node, layer) and node.layer < layer:
            del parent.children[path[-1]]

    def hide_children(self, path: Path, layer: int) -> None:
        """Remove what lower layers have inside the directory `path` (opaque whiteout)."""
        node = self.resolve(path)
        if node is not None:
            self._hide_below(node, layer)

    def find(self, path: Path) -> Node | None:
        """Return what is at `path`, a symbolic link itself if that is what is there; None if nothing is."""
        if not path:
            return self.root
        parent = self.resolve(path[:-1])
        return parent.children.get(path[-1]) if parent is not None else None

    def resolve(self, path: Path) -> Node | None:
        """Return what `path` leads to, symbolic links followed inside the tree; None if it leads nowhere."""
        pending = list(reversed(path))
        trail = [self.root]
        links = 0
        while pending:
            name = pending.pop()
            if name == b"..":
                if len(trail) > 1:
                    trail.pop()
                continue
            child = trail[-1].children.get(name)
            if child is None:
                return None
            if child.is_symlink:
                links += 1
                target = child.inode.content
                if links > MAX_LINKS_FOLLOWED or not isinstance(target, bytes):
                    return None
                if target.startswith(b"/"):
                    trail = [self.root]
                pending.extend(part for part in reversed(target.split(b"/")) if part not in (b"", b"."))
                continue
            trail.append(child)
        return trail[-1]

    def walk(self) -> Iterator[tuple[bytes, Node]]:
        """Yield (path, node) of everything but the root, parents first, names sorted as bytes."""
        pending = [(b"", self.root)]
        while pending:
            path, node = pending.pop()
            if node is not self.root:
                yield path, node
            prefix = path + b"/" if path else b""
            pending.extend((prefix + name, node.children[name]) for name in sorted(node.children, reverse=True))

    def _parent_for(self, path: Path, layer: int) -> Node:
        here = self.root
        for depth, name in enumerate(path[:-1]):
            child = here.children.get(name)
            if child is None:
                child = here.children[name] = Node(directory(), layer)
                self._count += 1
            elif child.is_symlink:
                target = self.resolve(path[: depth + 1])
                if target is None:
                    raise TreeError(f"{b'/'.join(path[: depth + 1])!r} is a link to nowhere")
                child = target
            if not child.is_directory:
                raise TreeError(f"{b'/'.join(path[: depth + 1])!r} is not a directory")
            here = child
        return here

    def _hide_below(self, node: Node, layer: int) -> bool:
        """Remove descendants of lower layers; return whether one of this layer stays (then its parents stay too)."""
        pending, order = [node], []
        while pending:
            here = pending.pop()
            order.append(here)
            pending.extend(here.children.values())
        for here in reversed(order):
            gone = [name for name, child in here.children.items() if child.layer < layer and not child.children]
            for name in gone:
                del here.children[name]
        return bool(node.children)
