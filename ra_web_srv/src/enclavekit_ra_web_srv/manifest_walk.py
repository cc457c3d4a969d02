# SPDX-License-Identifier: Apache-2.0
"""Names, types, modes and signatures of everything below a root, without following a link; blocks, for a thread."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field

from enclavekit_core.errors import EnclavekitError
from enclavekit_core.file_hash import open_beneath, signature_of
from enclavekit_core.tree_digest import NO_DIGEST, Kind, TreeEntry, digest_of_link

from enclavekit_ra_web_srv.manifest import Directory
from enclavekit_ra_web_srv.paths import ConfinedPath

MAX_FILES = 50_000  # what the hasher keeps; some 30 MB of manifest
MAX_ENTRIES = 200_000  # names of any kind, so that empty directories have a limit as well


class TreeTooLargeError(EnclavekitError):
    """There is more below the roots than a manifest may hold."""


@dataclass(slots=True)
class Walk:
    directories: list[Directory] = field(default_factory=list)
    files: dict[ConfinedPath, tuple[bytes, int]] = field(default_factory=dict)
    """File -> signature and size in bytes."""
    entries: int = 0


def walk_roots(roots: tuple[bytes, ...]) -> Walk:
    """Look at everything below `roots`; what vanishes meanwhile is passed over. Raises TreeTooLargeError."""
    found = Walk()
    for root in roots:
        if any(root != other and root.startswith(other.rstrip(b"/") + b"/") for other in roots):
            continue  # it is in another one
        try:
            handle = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            continue  # nothing there yet
        try:
            _walk_root(root, handle, found)
        finally:
            os.close(handle)
    return found


def _walk_root(root: bytes, top: int, found: Walk) -> None:
    waiting: list[tuple[bytes, ...]] = [()]
    while waiting:
        parts = waiting.pop()
        try:
            handle = open_beneath(top, list(parts), os.O_RDONLY | os.O_DIRECTORY)
        except OSError:
            continue
        try:
            entries = []
            for name in os.listdir(handle):
                below = (*parts, os.fsencode(name))
                try:
                    entries.append(_look(root, handle, below, found))
                except OSError:
                    continue
                found.entries += 1
                if entries[-1].kind is Kind.DIRECTORY:
                    waiting.append(below)
                if found.entries > MAX_ENTRIES or len(found.files) > MAX_FILES:
                    raise TreeTooLargeError(
                        f"cannot make a manifest: there are more than {MAX_FILES} files or {MAX_ENTRIES} names"
                    )
            mode = stat.S_IMODE(os.fstat(handle).st_mode)
            found.directories.append(Directory(_path(root, parts), mode, tuple(entries)))
        finally:
            os.close(handle)


def _look(root: bytes, handle: int, parts: tuple[bytes, ...], found: Walk) -> TreeEntry:
    name = parts[-1]
    info = os.stat(name, dir_fd=handle, follow_symlinks=False)
    if stat.S_ISDIR(info.st_mode):
        return TreeEntry(name, Kind.DIRECTORY, info.st_mode, NO_DIGEST)
    if stat.S_ISLNK(info.st_mode):
        return TreeEntry(name, Kind.LINK, 0, digest_of_link(os.fsencode(os.readlink(name, dir_fd=handle))))
    if not stat.S_ISREG(info.st_mode):
        return TreeEntry(name, Kind.OTHER, info.st_mode, NO_DIGEST)
    found.files[ConfinedPath(_path(root, parts), root, parts)] = (signature_of(info), info.st_size)
    return TreeEntry(name, Kind.FILE, info.st_mode, NO_DIGEST)


def _path(root: bytes, parts: tuple[bytes, ...]) -> bytes:
    return root.rstrip(b"/") + b"/" + b"/".join(parts) if parts else root
