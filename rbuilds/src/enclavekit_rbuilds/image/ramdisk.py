# SPDX-License-Identifier: Apache-2.0
"""Pack ramdisks: an app's tree or a framework's directory as a compressed, deterministic cpio archive.

All ramdisks of an image have one compression: the kernel finds an uncompressed archive at multiples of 4 only, which
another uncompressed one in front of it guarantees and a compressed one does not.
"""

from __future__ import annotations

import contextlib
import gzip
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO, cast

import msgspec
from enclavekit_core.errors import InputError, describe_cause
from enclavekit_eif.cpio import CpioWriter, pack_tree

from enclavekit_rbuilds.app.tree import AppTree, Inode

RECIPE = "2"  # part of cache keys: raise it when packing makes other bytes
APP_PREFIX = b"rootfs/"
# single-threaded, whose output the library keeps for a version; higher levels pack 5 % smaller at ten times the time
ZSTD_LEVEL = 9
GZIP_LEVEL = 6


class RamdiskFile(msgspec.Struct, frozen=True):
    """A packed ramdisk on disk."""

    path: str
    size: int
    """Bytes as stored in the image."""
    unpacked: int
    """Bytes of the archive: what it takes of the enclave's memory, about."""


@dataclass(frozen=True, slots=True)
class AppFile:
    """A file that ramdisk 1 holds beside the app's root; without content it is a directory."""

    name: bytes
    content: bytes | None
    uid: int = 0
    gid: int = 0


def pack_directory(root: str, target: str, compression: str) -> RamdiskFile:
    """Pack everything below `root`, owned by root, into `target`."""
    with _compressed(target, compression) as out:
        packed = pack_tree(root, out, owner=(0, 0))
    return _finish(target, packed.size_bytes)


def pack_app(tree: AppTree, files: Sequence[AppFile], target: str, compression: str) -> RamdiskFile:
    """Pack an app's tree under `rootfs` and `files` beside it into `target`. Raises InputError."""
    with _compressed(target, compression) as out:
        archive = CpioWriter(out)
        root = tree.root.inode
        archive.add_directory(APP_PREFIX, stat.S_IMODE(root.mode), root.uid, root.gid)
        for path, node in tree.walk():
            _add(archive, APP_PREFIX + path, node.inode)
        for file in files:
            if file.content is None:
                archive.add_directory(file.name, 0o755, file.uid, file.gid)
            else:
                archive.add_file(file.name, file.content, 0o644, file.uid, file.gid)
        packed = archive.close()
    return _finish(target, packed.size_bytes)


def _add(archive: CpioWriter, name: bytes, inode: Inode) -> None:
    permissions = stat.S_IMODE(inode.mode)
    if stat.S_ISDIR(inode.mode):
        archive.add_directory(name, permissions, inode.uid, inode.gid)
    elif isinstance(inode.content, str):
        archive.add_path(name, inode.content, mode=permissions, owner=(inode.uid, inode.gid))
    elif stat.S_ISLNK(inode.mode):
        archive.add_symlink(name, inode.content, inode.uid, inode.gid)
    else:
        archive.add_node(name, inode.mode, os.makedev(*inode.rdev), inode.uid, inode.gid)


@contextlib.contextmanager
def _compressed(target: str, compression: str) -> Iterator[BinaryIO]:
    try:
        with open(target, "wb") as raw:
            if compression == "zstd":
                import zstandard

                with zstandard.ZstdCompressor(level=ZSTD_LEVEL, threads=0).stream_writer(raw, closefd=False) as out:
                    yield cast(BinaryIO, out)
            elif compression == "gzip":
                with gzip.GzipFile("", "wb", GZIP_LEVEL, raw, mtime=0) as packer:
                    yield cast(BinaryIO, packer)
            else:
                yield raw
    except OSError as exc:
        raise InputError("write ramdisk", target, describe_cause(exc)) from exc


def _finish(target: str, unpacked: int) -> RamdiskFile:
    return RamdiskFile(target, os.stat(target).st_size, unpacked)
