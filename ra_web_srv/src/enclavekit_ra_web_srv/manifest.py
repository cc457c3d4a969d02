# SPDX-License-Identifier: Apache-2.0
"""Every file below the roots in one tree with one root, so that none is left out, added or rolled back unseen. Pure.

The tree is that of `enclavekit_core.tree_digest`, the one that fs-monitor computes of a directory. It begins at `/`:
the directories above a root hold nothing but the way to it, with mode 0. A file that has no hash now, because it keeps
changing, has 64 zero bytes in its place.

A proof for a path is the entries of each directory on the way to it. It proves what is there, and, by the name that is
missing, what is not.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from enclavekit_core.tree_digest import NO_DIGEST, Kind, TreeEntry, digest_of_directory
from msgspec import Struct


class ListedFile(Struct, frozen=True, gc=False):  # as TreeEntry
    path: bytes
    size_bytes: int
    digest: bytes | None
    """SHA3-512 of its content; None: it had none, because it kept changing."""


@dataclass(frozen=True, slots=True)
class Directory:
    """What was found in one directory; digests of directories are yet to be computed."""

    path: bytes
    mode: int
    entries: tuple[TreeEntry, ...]


@dataclass(frozen=True)
class Manifest:
    root: bytes
    files: tuple[ListedFile, ...]
    """Sorted by path."""
    directories: Mapping[bytes, tuple[TreeEntry, ...]]
    """Path -> its entries, sorted by name, with all digests; `/` among them."""
    made_at_ms: int

    def page(self, below: bytes, after: bytes, limit: int) -> list[ListedFile]:
        """Return up to `limit` files at or below `below` that come after the path `after`."""
        start = bisect.bisect_right(self.files, after, key=lambda file: file.path) if after else 0
        found = []
        for index in range(start, len(self.files)):
            file = self.files[index]
            if is_below(file.path, below):
                found.append(file)
                if len(found) == limit:
                    break
        return found

    def prove(self, path: bytes) -> list[tuple[bytes, tuple[TreeEntry, ...]]]:
        """Return the directories on the way to an absolute path, from `/` down, as far as there are any."""
        found, here = [], b"/"
        for name in [part for part in path.split(b"/") if part]:
            if here not in self.directories:
                break
            found.append((here, self.directories[here]))
            here = _join(here, name)
        return found


def is_below(path: bytes, directory: bytes) -> bool:
    """Whether `path` is `directory`, or in it at any depth; both without a slash at their end, but for `/` itself."""
    return path == directory or path.startswith(directory if directory.endswith(b"/") else directory + b"/")


def build_manifest(found: Iterable[Directory], files: Iterable[ListedFile], made_at_ms: int) -> Manifest:
    """Return the manifest of these directories; each but the topmost must be an entry of another.

    The topmost ones are the roots that exist.
    """
    by_path = {directory.path: directory for directory in found}
    above: dict[bytes, dict[bytes, int]] = {b"/": {}}  # directory above a root -> name of what leads to one -> mode
    for path, directory in by_path.items():
        parent, name = _split(path)
        if path == b"/" or parent in by_path:
            continue
        mode = directory.mode
        while True:
            names = above.setdefault(parent, {})
            names[name] = max(names.get(name, 0), mode)
            if parent == b"/" or parent in by_path:
                break
            parent, name, mode = *_split(parent), 0
    done: dict[bytes, tuple[TreeEntry, ...]] = {}
    digests: dict[bytes, bytes] = {}
    for path in sorted({*by_path, *above}, key=lambda path: path.count(b"/") if path != b"/" else -1, reverse=True):
        entries = list(by_path[path].entries) if path in by_path else []
        present = {entry.name for entry in entries}
        for name, mode in above.get(path, {}).items():
            if name not in present:
                entries.append(TreeEntry(name, Kind.DIRECTORY, mode, NO_DIGEST))
        complete = tuple(
            sorted(
                (
                    TreeEntry(entry.name, entry.kind, entry.mode, digests.get(_join(path, entry.name), NO_DIGEST))
                    if entry.kind is Kind.DIRECTORY
                    else entry
                    for entry in entries
                ),
                key=lambda entry: entry.name,
            )
        )
        done[path], digests[path] = complete, digest_of_directory(complete)
    return Manifest(digests[b"/"], tuple(sorted(files, key=lambda file: file.path)), done, made_at_ms)


def _split(path: bytes) -> tuple[bytes, bytes]:
    parent, _, name = path.rpartition(b"/")
    return parent or b"/", name


def _join(directory: bytes, name: bytes) -> bytes:
    return directory + name if directory == b"/" else directory + b"/" + name
