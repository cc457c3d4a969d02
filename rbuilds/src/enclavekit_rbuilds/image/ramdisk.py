# SPDX-License-Identifier: Apache-2.0
"""Pack ramdisks: an app's tree or a framework's directory as a compressed, deterministic cpio archive.

All ramdisks of an image have one compression: the kernel finds an uncompressed archive at multiples of 4 only, which
another uncompressed one in front of it guarantees and a compressed one does not.
"""

from __future__ import annotations

import contextlib
import gzip
import os
from collections.abc import Iterator, Sequence
from typing import BinaryIO, cast

import msgspec
from enclavekit_core.errors import InputError, describe_cause
from enclavekit_eif.cpio import pack_tree

from enclavekit_rbuilds.app.tree import AppTree
from enclavekit_rbuilds.image.app_archive import MAX_PART_BYTES, AppArchive, AppFile

__all__ = ["RECIPE", "AppFile", "RamdiskFile", "pack_app", "pack_directory"]

RECIPE = "3"  # part of cache keys: raise it when packing makes other bytes
# on Debian's Python: 27 MB from 76 at twice 190 MB/s; level 9 makes 25 MB of it, four times slower
ZSTD_LEVEL = 3
# With workers the library cuts its input into jobs of a size that the level alone decides, so 1 and 64 workers make
# the same bytes, and so does any sizing of writes (a test compares them); without (0), the bytes differ.
MIN_ZSTD_WORKERS, MAX_ZSTD_WORKERS = 1, 4  # each holds some 20 MB, and a build is to stay under 300
GZIP_LEVEL = 6


class RamdiskFile(msgspec.Struct, frozen=True):
    """A packed ramdisk on disk."""

    path: str
    size: int
    """Bytes as stored in the image."""
    unpacked: int
    """Bytes of the archive: what it takes of the enclave's memory, about."""


def pack_directory(root: str, target: str, compression: str) -> RamdiskFile:
    """Pack everything below `root`, owned by root, into `target`."""
    with _compressed(target, compression) as out:
        packed = pack_tree(root, out, owner=(0, 0))
    return _finish(target, packed.size_bytes)


def pack_app(
    tree: AppTree,
    files: Sequence[AppFile],
    target: str,
    compression: str,
    *,
    max_part_bytes: int = MAX_PART_BYTES,
) -> RamdiskFile:
    """Pack an app's tree under `rootfs` and `files` beside it into `target`. Raises InputError.

    Args: max_part_bytes: files above it are split, to be joined at boot; tests make it small.
    """
    with _compressed(target, compression) as out:
        size = AppArchive(out, max_part_bytes).write(tree, files)
    return _finish(target, size)


@contextlib.contextmanager
def _compressed(target: str, compression: str) -> Iterator[BinaryIO]:
    try:
        with open(target, "wb") as raw:
            if compression == "zstd":
                import zstandard

                compressor = zstandard.ZstdCompressor(level=ZSTD_LEVEL, threads=_workers())
                with compressor.stream_writer(raw, closefd=False) as out:
                    yield cast(BinaryIO, out)
            elif compression == "gzip":
                with gzip.GzipFile("", "wb", GZIP_LEVEL, raw, mtime=0) as packer:
                    yield cast(BinaryIO, packer)
            else:
                yield raw
    except OSError as exc:
        raise InputError("write ramdisk", target, describe_cause(exc)) from exc


def _workers() -> int:
    return min(max(len(os.sched_getaffinity(0)), MIN_ZSTD_WORKERS), MAX_ZSTD_WORKERS)


def _finish(target: str, unpacked: int) -> RamdiskFile:
    return RamdiskFile(target, os.stat(target).st_size, unpacked)
