# SPDX-License-Identifier: Apache-2.0
"""What names and links a tree may have, and in which order its entries come. Pure.

The receiver trusts no name: none is absolute or has `..` in it, each directory comes before what is in it, siblings are
sorted (hence none comes twice), and links lead nowhere outside.
"""

from __future__ import annotations

from enclavekit_core.errors import RemoteProtocolError

from enclavekit_pipeline.wire.tree_records import MAX_NAME_BYTES, Entry, EntryType

MAX_DEPTH = 1000  # more than half of what PATH_MAX allows; bounds what an open branch costs


def check_name(path: bytes) -> None:
    """Raises RemoteProtocolError unless `path` is relative, plain and names something below the root of the copy."""
    for part in path.split(b"/"):
        if part in (b"", b".", b"..") or len(part) > MAX_NAME_BYTES:
            raise RemoteProtocolError(f"cannot copy {shown(path)}: that is no name for something in a tree")


def stays_inside(path: bytes, target: bytes) -> bool:
    """Return whether a symlink at `path` with this target leads nowhere out of the tree.

    Only `..` at the front count as safe, and as many as there are directories around the link: those directories are
    real, while a name before a later `..` could be a link to anywhere in the tree.
    """
    if target.startswith(b"/"):
        return False
    parts = [part for part in target.split(b"/") if part not in (b"", b".")]
    ups = 0
    while ups < len(parts) and parts[ups] == b"..":
        ups += 1
    return b".." not in parts[ups:] and ups <= path.count(b"/")


def parent_of(path: bytes) -> bytes:
    return path.rpartition(b"/")[0]


def shown(path: bytes) -> str:
    """Return a path fit to be shown: names in an enclave must not move the cursor of our terminal."""
    return "".join(char if char.isprintable() else "?" for char in path.decode(errors="replace"))


class EntryOrder:
    """Follows the entries; knows the branch of the tree that is being walked."""

    def __init__(self, unsafe_links: bool) -> None:
        self._unsafe_links = unsafe_links
        self._open: list[Entry] = []
        self._last: list[bytes] = []  # in each of the open directories the path that came last in it
        self._began = False

    def enter(self, entry: Entry) -> list[Entry]:
        """Take the next entry; return the directories that are complete by that, innermost first.

        Raises: RemoteProtocolError.
        """
        if not self._began:
            self._began = True
            if entry.path or entry.type not in (EntryType.FILE, EntryType.DIRECTORY):
                raise RemoteProtocolError("cannot copy: a tree begins with its root")
            left: list[Entry] = []
        else:
            check_name(entry.path)
            left = self._leave_to(parent_of(entry.path), entry.path)
            self._check_order(entry)
            self._check_links(entry)
            self._last[-1] = entry.path
        if entry.type is EntryType.DIRECTORY:
            if len(self._open) >= MAX_DEPTH:
                raise RemoteProtocolError(f"cannot copy {shown(entry.path)}: it is more than {MAX_DEPTH} deep")
            self._open.append(entry)
            self._last.append(b"")
        return left

    def finish(self) -> list[Entry]:
        """Return the directories that are complete now that all has come. Raises RemoteProtocolError."""
        if not self._began:
            raise RemoteProtocolError("cannot copy: the tree has no root")
        left = self._open[::-1]
        self._open, self._last = [], []
        return left

    def _leave_to(self, parent: bytes, path: bytes) -> list[Entry]:
        left: list[Entry] = []
        while self._open and self._open[-1].path != parent:
            left.append(self._open.pop())
            self._last.pop()
        if not self._open:
            raise RemoteProtocolError(f"cannot copy {shown(path)}: its directory did not come before it")
        return left

    def _check_order(self, entry: Entry) -> None:
        if entry.path <= self._last[-1]:
            raise RemoteProtocolError(f"cannot copy {shown(entry.path)}: it is out of order")

    def _check_links(self, entry: Entry) -> None:
        if entry.type is EntryType.HARDLINK:
            check_name(entry.target)
        if entry.type is EntryType.SYMLINK and not self._unsafe_links and not stays_inside(entry.path, entry.target):
            raise RemoteProtocolError(f"cannot copy {shown(entry.path)}: it is a link that leads out of the tree")
