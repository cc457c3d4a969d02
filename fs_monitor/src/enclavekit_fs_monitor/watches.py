# SPDX-License-Identifier: Apache-2.0
"""Watch descriptors and the paths that they stand for.

One descriptor stands for an inode, which may have several paths in the tree: names of a file, or directories that are
bound to more than one place.
"""

from __future__ import annotations

import errno

from enclavekit_fs_monitor.inotify import Inotify


class Watches:
    """All watches of one inotify instance."""

    def __init__(self, inotify: Inotify) -> None:
        self._inotify = inotify
        self._paths: dict[int, tuple[bytes, ...]] = {}
        self._wds: dict[bytes, int] = {}
        self._placed: set[bytes] = set()
        self.missing = 0
        """Watches that could not be placed since `begin_round`: the limit is reached."""

    def __len__(self) -> int:
        return len(self._wds)

    def __contains__(self, path: bytes) -> bool:
        return path in self._wds

    def paths_of(self, wd: int) -> tuple[bytes, ...]:
        """Return the paths that an event is about; none for a watch that was given up."""
        return self._paths.get(wd, ())

    def begin_round(self) -> None:
        """Before everything is watched anew: see `end_round`."""
        self._placed, self.missing = set(), 0

    def end_round(self) -> None:
        """Give up what was not placed again: moved away or deleted, and the event that said so was lost."""
        for path in self._wds.keys() - self._placed:
            self.drop(path)

    def place(self, path: bytes, handle: int, mask: int) -> None:
        """Watch what `handle` is open on, as `path`."""
        try:
            wd = self._inotify.add(handle, mask)
        except OSError as exc:
            # any other reason: deleted since it was opened
            self.missing += exc.errno in (errno.ENOSPC, errno.ENOMEM)
            return
        self._placed.add(path)
        if self._wds.get(path) == wd:
            return
        self.drop(path)  # another inode has this path now; where the former one went we are told by its own events
        self._wds[path] = wd
        self._paths[wd] = (*self._paths.get(wd, ()), path)

    def drop(self, path: bytes) -> None:
        """`path` does not lead to what was watched any more."""
        wd = self._wds.pop(path, None)
        if wd is None:
            return
        left = tuple(other for other in self._paths[wd] if other != path)
        if left:
            self._paths[wd] = left
        else:
            del self._paths[wd]
            self._inotify.remove(wd)

    def drop_tree(self, top: bytes) -> None:
        """Likewise for `top` and all below it."""
        below = top + b"/"
        for path in [path for path in self._wds if path == top or path.startswith(below)]:
            self.drop(path)

    def forget(self, wd: int) -> None:
        """The kernel has ended the watch."""
        for path in self._paths.pop(wd, ()):
            del self._wds[path]
