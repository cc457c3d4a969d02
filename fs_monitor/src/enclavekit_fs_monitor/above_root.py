# SPDX-License-Identifier: Apache-2.0
"""The directories that a root lies in: when one of them moves or goes, so does the root, without a word of its own."""

from __future__ import annotations

import os

from enclavekit_fs_monitor import inotify_events as kernel
from enclavekit_fs_monitor.inotify import Inotify
from enclavekit_fs_monitor.watches import Watches


class AboveRoot:
    """Watches on all of them, and while the root is not there, one for the name that is missing on the way to it."""

    def __init__(self, root: bytes, inotify: Inotify, watches: Watches) -> None:
        """`watches` are those of the tree; a directory may be in it and above it, bound to two places."""
        self._root, self._inotify, self._watches = root, inotify, watches
        self._wds: set[int] = set()
        self._awaited: dict[int, bytes] = {}

    @property
    def is_root_awaited(self) -> bool:
        """Whether the root was not there, and an event will tell when it is back."""
        return bool(self._awaited)

    def concerns(self, event: kernel.Event) -> bool:
        """Return whether the root may have come or gone with this event; an end of the watch is noted."""
        if event.mask & kernel.APPEARS and self._awaited.get(event.wd) == event.name:
            return True
        if event.wd not in self._wds:
            return False
        if event.mask & kernel.IN_IGNORED:
            self._wds.discard(event.wd)
            self._awaited.pop(event.wd, None)
            return True
        return bool(event.mask & kernel.SELF)

    def watch(self) -> None:
        """Watch what is there now."""
        awaited, self._awaited = self._awaited, {}
        above = self._root
        while above != b"/":
            above = os.path.dirname(above)
            try:
                handle = os.open(above, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            except OSError:
                continue  # gone, and the root with it: see `await_root`
            try:
                wd = self._inotify.add(handle, kernel.WATCH_ABOVE)
                self._wds.add(wd)
                if wd in awaited and not self._watches.paths_of(wd):
                    self._inotify.add(handle, kernel.WATCH_ABOVE & ~kernel.IN_MASK_ADD)  # names do not matter any more
            except OSError:
                pass  # the limit of watches: the root's own watch will fail, too, and that is told
            finally:
                os.close(handle)

    def await_root(self) -> None:
        """Watch the last directory on the way to the root that is there for the name that is missing in it."""
        handle = os.open(b"/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for name in [part for part in self._root.split(b"/") if part]:
                following = _open_directory(name, handle)
                if following is None:
                    try:
                        wd = self._inotify.add(handle, kernel.WATCH_RETURN)
                    except OSError:
                        return  # the limit of watches: it is looked for
                    following = _open_directory(name, handle)  # it may have come before the watch
                    if following is None:
                        self._wds.add(wd)
                        self._awaited[wd] = name
                        return
                os.close(handle)
                handle = following
        finally:
            os.close(handle)


def _open_directory(name: bytes, directory: int) -> int | None:
    try:
        return os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    except OSError:
        return None
