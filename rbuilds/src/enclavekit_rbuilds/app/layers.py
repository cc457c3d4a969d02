# SPDX-License-Identifier: Apache-2.0
"""Apply one container layer, an uncompressed tar stream, to an app's tree; contents go to scratch files.

Source: OCI image specification, layer.md (whiteouts, opaque whiteouts, change sets); tar by the standard library.
"""

from __future__ import annotations

import os
import stat
import tarfile
from dataclasses import replace
from typing import IO

from enclavekit_core.errors import InputError

from enclavekit_rbuilds.app.tree import AppTree, Inode, Path, TreeError, split_path

WHITEOUT = b".wh."
OPAQUE = b".wh..wh..opq"
CHUNK_BYTES = 1 << 20
MAX_ID = 0xFFFFFFFE  # uid_t, less the one that means "no change"
KINDS = {
    tarfile.REGTYPE: stat.S_IFREG,
    tarfile.AREGTYPE: stat.S_IFREG,
    tarfile.CONTTYPE: stat.S_IFREG,
    tarfile.SYMTYPE: stat.S_IFLNK,
    tarfile.DIRTYPE: stat.S_IFDIR,
    tarfile.CHRTYPE: stat.S_IFCHR,
    tarfile.BLKTYPE: stat.S_IFBLK,
    tarfile.FIFOTYPE: stat.S_IFIFO,
}


class Spool:
    """Numbered scratch files, which hold the contents of a tree's regular files."""

    def __init__(self, directory: str) -> None:
        os.makedirs(directory, exist_ok=True)
        self._directory = directory
        self._count = 0

    def new_path(self) -> str:
        self._count += 1
        return os.path.join(self._directory, str(self._count))

    def write(self, source: IO[bytes], size: int) -> str:
        """Copy `size` bytes to a new file. Raises TreeError if there are fewer."""
        path = self.new_path()
        with open(path, "wb") as out:
            while size:
                chunk = source.read(min(size, CHUNK_BYTES))
                if not chunk:
                    raise TreeError("it is cut off")
                out.write(chunk)
                size -= len(chunk)
        return path

    def link(self, path: str) -> str:
        """Return another name of the scratch file `path`."""
        other = self.new_path()
        os.link(path, other)
        return other


def apply_layer(tree: AppTree, stream: IO[bytes], layer: int, what: str, spool: Spool) -> int:
    """Apply the uncompressed tar `stream` as layer number `layer`; `what` names it in errors.

    Returns: how many files had extended attributes, which an initramfs cannot hold.
    Raises: InputError for a malformed tar or an entry that cannot be placed.
    """
    with_attributes = 0
    name = ""
    try:
        with tarfile.open(fileobj=stream, mode="r|", encoding="utf-8", errors="surrogateescape") as archive:
            for member in archive:
                name = member.name
                with_attributes += any(key.startswith("SCHILY.xattr.") for key in member.pax_headers)
                _apply(tree, archive, member, layer, spool)
                # the library keeps every member it has seen; we need none again
                archive.members.clear()  # type: ignore[attr-defined]
    except TreeError as exc:
        raise InputError("read", what, f"{name!r}: {exc}") from exc
    except (tarfile.TarError, ValueError, OverflowError, EOFError) as exc:
        raise InputError("read", what, f"it is not a sound tar archive: {exc}") from exc
    return with_attributes


def _apply(tree: AppTree, archive: tarfile.TarFile, member: tarfile.TarInfo, layer: int, spool: Spool) -> None:
    where = split_path(member.name.encode("utf-8", "surrogateescape"))
    if where and where[-1].startswith(WHITEOUT):
        if where[-1] == OPAQUE:
            tree.hide_children(where[:-1], layer)
        elif hidden := where[-1].removeprefix(WHITEOUT):
            tree.hide((*where[:-1], hidden), layer)
        return
    target = member.linkname.encode("utf-8", "surrogateescape")
    if member.islnk():
        _link(tree, where, split_path(target), layer, spool)
        return
    kind = KINDS.get(member.type)
    if member.issparse() or kind is None:
        raise TreeError("it is a sparse file" if member.issparse() else f"its type {member.type!r} is unknown")
    if not (0 <= member.uid <= MAX_ID and 0 <= member.gid <= MAX_ID):
        raise TreeError(f"its owner {member.uid}:{member.gid} is out of range")
    inode = Inode(kind | stat.S_IMODE(member.mode), member.uid, member.gid)
    if kind == stat.S_IFREG:
        content = archive.extractfile(member)
        assert content is not None  # it is a regular file
        inode.content = spool.write(content, member.size)
    elif kind == stat.S_IFLNK:
        if not target or b"\0" in target:
            raise TreeError("its target is empty or holds a NUL byte")
        inode.mode, inode.content = stat.S_IFLNK | 0o777, target
    elif kind in (stat.S_IFCHR, stat.S_IFBLK):
        inode.rdev = (member.devmajor, member.devminor)
    tree.place(where, inode, layer)


def _link(tree: AppTree, where: Path, target: Path, layer: int, spool: Spool) -> None:
    node = tree.find(target)
    if node is None:
        raise TreeError("it is a hard link to a file that is not there")
    if node.is_directory:
        raise TreeError("it is a hard link to a directory")
    inode = replace(node.inode)
    if isinstance(inode.content, str):
        inode.content = spool.link(inode.content)
    tree.place(where, inode, layer)
