# SPDX-License-Identifier: Apache-2.0
"""Which paths are names of one file. Pure.

Only files with several names are kept here. A file gets its second name without a word about the first one, so that all
files are gone through once for those inodes that have just been found to have several: `index`.
"""

from __future__ import annotations

from collections.abc import Iterable

from enclavekit_core.file_hash import INODE_BYTES


class HardLinks:
    def __init__(self) -> None:
        self._names: dict[bytes, tuple[bytes, ...]] = {}
        self.unindexed: set[bytes] = set()
        """Inodes whose other names are still to be looked for."""

    def add(self, path: bytes, signature: bytes) -> tuple[bytes, ...]:
        """Take note of a name of a file with several; return the others that are known."""
        inode = signature[:INODE_BYTES]
        names = self._names.get(inode)
        if names is None:
            self.unindexed.add(inode)
            names = ()
        others = tuple(name for name in names if name != path)
        self._names[inode] = (*others, path)
        return others

    def remove(self, path: bytes, signature: bytes) -> None:
        """Take note that `path` is not, or no longer, a name of the file with this signature."""
        inode = signature[:INODE_BYTES]
        if inode not in self._names:
            return
        names = tuple(name for name in self._names[inode] if name != path)
        if names:
            self._names[inode] = names
        else:
            del self._names[inode]
            self.unindexed.discard(inode)

    def index(self, known: Iterable[tuple[bytes, bytes | None]]) -> list[tuple[tuple[bytes, ...], bytes]]:
        """Find the other names of `unindexed` among all `known` paths and signatures.

        Returns: for each inode its names, and the newest signature that one of them had: what the others should have.
        """
        wanted, self.unindexed = self.unindexed, set()
        found: dict[bytes, dict[bytes, bytes]] = {inode: {} for inode in wanted}
        for path, signature in known:
            if signature is not None and signature[:INODE_BYTES] in found:
                found[signature[:INODE_BYTES]][path] = signature
        result = []
        for inode, signatures in found.items():
            if signatures:
                self._names[inode] = tuple(signatures)
                result.append((tuple(signatures), max(signatures.values(), key=_changed_at)))
        return result


def _changed_at(signature: bytes) -> int:
    return int.from_bytes(signature[-8:], "little", signed=True)  # st_ctime_ns is its last field
