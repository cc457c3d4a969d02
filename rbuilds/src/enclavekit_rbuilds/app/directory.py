# SPDX-License-Identifier: Apache-2.0
"""Read an app's root file system from a directory.

Everything belongs to root in the image, whoever owns the directory: two people who unpack the same sources must get the
same bytes. Who wants the owners on disk asks for them. Times and the order of directory entries do not count.
"""

from __future__ import annotations

import os
import stat

from enclavekit_core.errors import InputError, describe_cause

from enclavekit_rbuilds.app.inodes import Content, Inode, TreeError
from enclavekit_rbuilds.app.layers import CAPABILITY, IGNORED_XATTRS, Losses
from enclavekit_rbuilds.app.tree import AppTree, Node
from enclavekit_rbuilds.base.progress import Progress

SKIPPED_SOCKETS = "sockets are left out, an image cannot hold one"


def read_directory(path: str, *, keep_owners: bool = False, progress: Progress | None = None) -> AppTree:
    """Return the tree below `path`. Raises InputError for what cannot be read or packed.

    Args:
        keep_owners: give files the uid and gid that they have on disk.
        progress: is told what is left out.
    """
    root = os.fsencode(os.path.abspath(path))
    reader = _DirectoryReader(AppTree(root), keep_owners)
    here = root
    try:
        if not os.path.isdir(root):
            raise InputError("read", path, "it is not a directory" if os.path.exists(root) else "there is none")
        pending: list[tuple[bytes, tuple[bytes, ...]]] = [(root, ())]
        reader.set_root(os.stat(root))
        while pending:
            here, where = pending.pop()
            with os.scandir(here) as listing:
                entries = sorted(listing, key=lambda entry: entry.name)
            for entry in entries:
                reader.place((*where, entry.name), entry.path, entry.stat(follow_symlinks=False))
                if entry.is_dir(follow_symlinks=False):
                    pending.append((entry.path, (*where, entry.name)))
    except TreeError as exc:
        raise InputError("read", os.fsdecode(here), str(exc)) from exc
    except OSError as exc:
        raise InputError("read", os.fsdecode(exc.filename or here), describe_cause(exc)) from exc
    if progress is not None:
        for line in reader.losses.sentences():
            progress.note(line)
    return reader.tree


class _DirectoryReader:
    """Places what is on disk in a tree."""

    def __init__(self, tree: AppTree, keep_owners: bool) -> None:
        self.tree = tree
        self.losses = Losses()
        self._keep_owners = keep_owners
        self._links: dict[tuple[int, int], Node] = {}
        self._checks_access = os.geteuid() != 0

    def set_root(self, info: os.stat_result) -> None:
        """Give the root the owner of the directory, if owners count; its mode is that of any root."""
        if self._keep_owners:
            self.tree.place((), Inode(stat.S_IFDIR | 0o755, info.st_uid, info.st_gid))

    def place(self, where: tuple[bytes, ...], path: bytes, info: os.stat_result) -> None:
        """Place one entry. Raises OSError, TreeError."""
        inode = Inode(info.st_mode)
        if self._keep_owners:
            inode.uid, inode.gid = info.st_uid, info.st_gid
        if stat.S_ISREG(info.st_mode):
            first = self._links.get((info.st_dev, info.st_ino)) if info.st_nlink > 1 else None
            if first is not None:
                self.tree.link(where, first)
                return
            if self._checks_access and not os.access(path, os.R_OK):
                raise PermissionError(13, "permission denied", os.fsdecode(path))
            inode.content = Content(b"", 0, info.st_size)
            inode.capability = self._attributes(path)
        elif stat.S_ISLNK(info.st_mode):
            inode.mode, inode.content = stat.S_IFLNK | 0o777, os.readlink(path)
        elif stat.S_ISCHR(info.st_mode) or stat.S_ISBLK(info.st_mode):
            inode.rdev = (os.major(info.st_rdev), os.minor(info.st_rdev))
        elif stat.S_ISSOCK(info.st_mode):
            self.losses.add(SKIPPED_SOCKETS, "/" + os.fsdecode(b"/".join(where)))
            return
        number = self.tree.place(where, inode)
        if stat.S_ISREG(info.st_mode) and info.st_nlink > 1:
            self._links[info.st_dev, info.st_ino] = Node(self.tree, number, b"/".join(where))

    def _attributes(self, path: bytes) -> bytes:
        """Return a file's capabilities; note which other extended attributes it loses."""
        try:
            names = os.listxattr(path, follow_symlinks=False)
        except OSError:
            return b""  # a file system without them
        for name in names:
            if name != CAPABILITY and name not in IGNORED_XATTRS:
                self.losses.add(f"files lose the extended attribute {name}", os.fsdecode(path))
        return os.getxattr(path, CAPABILITY, follow_symlinks=False) if CAPABILITY in names else b""
