# SPDX-License-Identifier: Apache-2.0
"""Read an app's root file system from a directory.

Everything belongs to root in the image, whoever owns the directory: two people who unpack the same sources must get the
same bytes. Times and the order of directory entries do not count either.
"""

from __future__ import annotations

import os
import stat

from enclavekit_core.errors import InputError, describe_cause

from enclavekit_rbuilds.app.tree import AppTree, Inode, TreeError


def read_directory(path: str) -> AppTree:
    """Return the tree below `path`. Raises InputError for what cannot be read or packed."""
    tree = AppTree()
    root = os.fsencode(path)
    pending: list[tuple[bytes, tuple[bytes, ...]]] = [(root, ())]
    here = root
    try:
        if not os.path.isdir(root):
            raise InputError("read", path, "it is not a directory" if os.path.exists(root) else "there is none")
        while pending:
            here, where = pending.pop()
            for entry in sorted(os.scandir(here), key=lambda entry: entry.name):
                place = (*where, entry.name)
                tree.place(place, _inode(entry, entry.stat(follow_symlinks=False)))
                if entry.is_dir(follow_symlinks=False):
                    pending.append((entry.path, place))
    except TreeError as exc:
        raise InputError("read", os.fsdecode(here), str(exc)) from exc
    except OSError as exc:
        raise InputError("read", os.fsdecode(exc.filename or here), describe_cause(exc)) from exc
    return tree


def _inode(entry: os.DirEntry[bytes], info: os.stat_result) -> Inode:
    inode = Inode(info.st_mode)
    if stat.S_ISREG(info.st_mode):
        inode.content = os.fsdecode(os.path.abspath(entry.path))
    elif stat.S_ISLNK(info.st_mode):
        inode.mode, inode.content = stat.S_IFLNK | 0o777, os.readlink(entry.path)
    elif stat.S_ISCHR(info.st_mode) or stat.S_ISBLK(info.st_mode):
        inode.rdev = (os.major(info.st_rdev), os.minor(info.st_rdev))
    elif stat.S_ISSOCK(info.st_mode):
        raise TreeError(f"{os.fsdecode(entry.name)} is a socket; an image cannot hold one")
    return inode
