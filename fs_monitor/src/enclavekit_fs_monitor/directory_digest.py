# SPDX-License-Identifier: Apache-2.0
"""The digest of a directory as it is now, out of hashes that are known already; blocks, for a thread.

Nothing is read here but names, types, modes and links: a file counts with the hash that was computed of it, if it has
not changed since.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping

from enclavekit_core.errors import EnclavekitError, InputError
from enclavekit_core.file_hash import signature_of
from enclavekit_core.tree_digest import NO_DIGEST, Kind, TreeEntry, digest_of_directory, digest_of_link

from enclavekit_fs_monitor.watch_tree import WatchTree

MAX_DEPTH = 500  # of directories in each other: each holds a descriptor, and a frame of the stack


class NotHashedError(EnclavekitError):
    """There is no hash of a file now; there may be one soon."""

    def __init__(self, message: str, path: bytes) -> None:
        self.path = path
        super().__init__(message)


class NotThereError(InputError):
    """No such file or directory is watched now; it may come."""


class DirectoryDigest:
    """Computes the digest of directories of one tree."""

    def __init__(self, tree: WatchTree, known: Mapping[bytes, tuple[bytes, bytes]]) -> None:
        """`known` has the hash and signature of each file below the directory that is asked for."""
        self._tree, self._known = tree, known
        self.files = 0

    def compute(self, directory: bytes) -> bytes:
        """Return the digest of `directory`. Raises NotHashedError; OSError if it is no directory, or has gone."""
        handle = self._tree.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        return self._compute(directory, handle, 0)

    def _compute(self, directory: bytes, handle: int, depth: int) -> bytes:
        if depth > MAX_DEPTH:
            os.close(handle)
            raise NotHashedError(f"cannot digest directory: it is deeper than {MAX_DEPTH}", directory)
        try:
            entries = []
            for name in os.listdir(handle):
                if (entry := self._entry(directory, handle, os.fsencode(name), depth)) is not None:
                    entries.append(entry)
            return digest_of_directory(entries)
        finally:
            os.close(handle)

    def _entry(self, directory: bytes, handle: int, name: bytes, depth: int) -> TreeEntry | None:
        path = os.path.join(directory, name)
        try:
            info = os.stat(name, dir_fd=handle, follow_symlinks=False)
            is_directory = stat.S_ISDIR(info.st_mode)
            if self._tree.is_ignored(path, is_directory=is_directory):
                return None
            if is_directory:
                flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
                below = os.open(name, flags, dir_fd=handle)
                return TreeEntry(name, Kind.DIRECTORY, info.st_mode, self._compute(path, below, depth + 1))
            if stat.S_ISLNK(info.st_mode):
                target = os.fsencode(os.readlink(name, dir_fd=handle))
                return TreeEntry(name, Kind.LINK, 0, digest_of_link(target))
        except OSError as exc:
            raise NotHashedError(f"cannot digest directory: {_show(path)} has just changed", path) from exc
        if not stat.S_ISREG(info.st_mode):
            return TreeEntry(name, Kind.OTHER, info.st_mode, NO_DIGEST)
        digest, signature = self._known.get(path, (b"", b""))
        if signature != signature_of(info):
            raise NotHashedError(f"cannot digest directory: {_show(path)} has no hash of its present content", path)
        self.files += 1
        return TreeEntry(name, Kind.FILE, info.st_mode, digest)


def _show(path: bytes) -> str:
    return ascii(os.fsdecode(path))[1:-1]
