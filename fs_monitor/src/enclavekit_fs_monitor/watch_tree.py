# SPDX-License-Identifier: Apache-2.0
"""A directory tree under watch: events in, sightings of files out.

An event is taken as a hint that a name may have changed, and the name is looked at again where that matters: the
kernel's queue tells of the past, and a scan may have seen further already. A directory is listed only once its watch is
in place, so that a file is either listed or announced. Links are never followed.

All of it blocks and belongs to one thread at a time; `open_file` alone may be called by any.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from enclavekit_core.bus import MAX_PATH_BYTES
from enclavekit_core.errors import InputError, describe_cause
from enclavekit_core.file_hash import open_beneath, open_regular, signature_of

from enclavekit_fs_monitor import inotify_events as kernel
from enclavekit_fs_monitor.above_root import AboveRoot
from enclavekit_fs_monitor.file_state import Happening
from enclavekit_fs_monitor.ignore_rules import IgnoreRules
from enclavekit_fs_monitor.inotify import Inotify
from enclavekit_fs_monitor.watches import Watches

MAX_FILES_PER_BATCH = 1000  # a scan hands over its findings in portions of this size


@dataclass(frozen=True, slots=True)
class Sighting:
    """Something seen about one file."""

    path: bytes
    happening: Happening
    signature: bytes | None = None
    """Of a file that a scan found."""


@dataclass(frozen=True, slots=True)
class TreeGone:
    """A directory was moved away with all that is in it."""

    path: bytes


class ScanNeeded:
    """Events were lost, or the root has gone: only a scan tells what is there now."""


SCAN_NEEDED = ScanNeeded()
Observation = Sighting | TreeGone | ScanNeeded


class WatchTree:
    """`root` and every directory below it, each under watch."""

    def __init__(self, root: str, inotify: Inotify, rules: IgnoreRules, excluded: Collection[bytes] = ()) -> None:
        """Raises InputError if `root` is no directory.

        Args:
            excluded: paths that do not belong to the tree, and all below them; see also `exclude`.
        """
        self.root = os.fsencode(os.path.realpath(root))
        self._inotify = inotify
        self._watches = Watches(inotify)
        self._above = AboveRoot(self.root, inotify, self._watches)
        self.rules, self.excluded = rules, excluded
        """What is ignored; after either is changed, `scan`."""
        self.overflows = 0
        self.events = 0
        self.too_long = 0
        """Names seen since the last scan began whose path has more than MAX_PATH_BYTES: they have no key on the bus."""
        try:
            os.close(os.open(self.root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
        except OSError as exc:
            raise InputError("watch", root, describe_cause(exc)) from exc

    def scan(self) -> Iterator[list[Sighting]]:
        """Watch and list the whole tree, portion by portion; lists nothing while the root is not there."""
        self._watches.begin_round()
        self.too_long = 0
        self._above.watch()
        yield from self._scan_from(self.root)
        if not self.is_present:
            self._above.await_root()
            yield from self._scan_from(self.root)  # it may have come before that
        self._watches.end_round()

    @property
    def is_present(self) -> bool:
        return self.root in self._watches

    @property
    def is_awaited(self) -> bool:
        """Whether the root is not there, and an event will tell when it is back."""
        return self._above.is_root_awaited

    @property
    def watches(self) -> int:
        return len(self._watches)

    @property
    def unwatched(self) -> int:
        """Directories and files that could not be watched since the last scan began: the limit is reached."""
        return self._watches.missing

    def read(self) -> list[Observation]:
        """Return what the events that are queued mean, possibly nothing."""
        return self.apply(self._inotify.read())

    def apply(self, events: list[kernel.Event]) -> list[Observation]:
        """Return what a read of events means."""
        self.events += len(events)
        seen: list[Observation] = []
        for event in kernel.drop_repeats(events):
            seen += self._apply(event)
        return seen

    def look_at(self, path: bytes) -> Sighting:
        """Look whether a regular file that is not ignored is at `path` now."""
        return Sighting(path, Happening.VANISH) if self.covers(path) else self._look_at(path)

    def covers(self, path: bytes) -> bool:
        """Return whether `path` below the root is not hashed: it, or a directory on the way to it, is ignored."""
        if len(path) > MAX_PATH_BYTES or any(path == other or path.startswith(other + b"/") for other in self.excluded):
            return True
        return self.rules.covers(self._relative(path), is_directory=False)

    def open_file(self, path: bytes) -> int:
        """Open a regular file of this tree for reading. Raises OSError; FileNotFoundError for what is none."""
        root = os.open(self.root, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            return open_regular(root, self._parts(path))
        finally:
            os.close(root)

    def open(self, path: bytes, flags: int) -> int:
        """Open a path of this tree, following no link below the root. Raises OSError."""
        root = os.open(self.root, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            return open_beneath(root, self._parts(path), flags)
        finally:
            os.close(root)

    def is_ignored(self, path: bytes, *, is_directory: bool) -> bool:
        """Return whether `path`, in a directory that is not ignored, is."""
        return path in self.excluded or self.rules.matches(self._relative(path), is_directory=is_directory)

    def _is_too_long(self, path: bytes) -> bool:
        self.too_long += (too_long := len(path) > MAX_PATH_BYTES)
        return too_long

    def _relative(self, path: bytes) -> bytes:
        return path[len(self.root) :].lstrip(b"/")

    def _parts(self, path: bytes) -> list[bytes]:
        return [part for part in path[len(self.root) :].split(b"/") if part]

    def _look_at(self, path: bytes) -> Sighting:
        try:
            handle = self.open(path, os.O_PATH)
        except OSError:
            return Sighting(path, Happening.VANISH)
        try:
            info = os.fstat(handle)
            if not stat.S_ISREG(info.st_mode):
                return Sighting(path, Happening.VANISH)
            if info.st_nlink > 1:
                self._watches.place(path, handle, kernel.WATCH_FILE)
            return Sighting(path, Happening.CLOSE)
        finally:
            os.close(handle)

    def _apply(self, event: kernel.Event) -> list[Observation]:
        if event.mask & kernel.IN_Q_OVERFLOW:
            self.overflows += 1
            return [SCAN_NEEDED]
        about_root = self._above.concerns(event)
        paths = self._watches.paths_of(event.wd)
        if event.mask & kernel.IN_IGNORED:
            self._watches.forget(event.wd)
            return [SCAN_NEEDED] if about_root or self.root in paths else []
        if about_root or event.mask & kernel.IN_UNMOUNT:
            return [SCAN_NEEDED]
        seen: list[Observation] = []
        for path in paths:
            if event.name:
                seen += self._apply_to(event, os.path.join(path, event.name))
            else:
                seen += self._apply_self(event, path)
        return seen

    def _apply_self(self, event: kernel.Event, path: bytes) -> list[Observation]:
        """Of a directory its parent tells the same with a name, and the root has no watched parent."""
        if path == self.root:
            return [SCAN_NEEDED] if event.mask & kernel.SELF else []
        if event.mask & kernel.IN_ISDIR or not event.mask & kernel.CONTENT:
            return []
        # a file with several names, changed by one that may not be ours
        return [Sighting(path, Happening.WRITE)] if event.mask & kernel.IN_MODIFY else [self._look_at(path)]

    def _apply_to(self, event: kernel.Event, path: bytes) -> list[Observation]:
        is_directory = bool(event.mask & kernel.IN_ISDIR)
        if event.mask & (kernel.IN_MOVED_FROM | kernel.IN_DELETE) and not is_directory:
            self._watches.drop(path)
        if self.is_ignored(path, is_directory=is_directory) or self._is_too_long(path):
            return []
        if is_directory:
            return self._apply_to_directory(event.mask, path)
        if event.mask & kernel.IN_MODIFY:
            return [Sighting(path, Happening.WRITE)]
        sighting = self._look_at(path)
        if event.mask & kernel.IN_CREATE and sighting.happening is Happening.CLOSE:
            return [Sighting(path, Happening.CREATE)]
        return [sighting]

    def _apply_to_directory(self, mask: int, path: bytes) -> list[Observation]:
        if mask & (kernel.IN_CREATE | kernel.IN_MOVED_TO):
            return [sighting for portion in self._scan_from(path) for sighting in portion]
        if mask & kernel.IN_MOVED_FROM:
            self._watches.drop_tree(path)
            return [TreeGone(path)]
        return []  # deleted: it was empty, and what was in it was announced one by one

    def _scan_from(self, top: bytes) -> Iterator[list[Sighting]]:
        found: list[Sighting] = []
        waiting = [top]
        while waiting:
            directory = waiting.pop()
            try:
                handle = self.open(directory, os.O_RDONLY | os.O_DIRECTORY)
            except OSError:
                continue  # gone, or no directory any more: its parent's watch tells
            try:
                self._watches.place(directory, handle, kernel.WATCH_DIRECTORY)
                with os.scandir(handle) as entries:
                    for entry in entries:
                        self._take_entry(directory, handle, entry, found, waiting)
            finally:
                os.close(handle)
            while len(found) >= MAX_FILES_PER_BATCH:
                yield found[:MAX_FILES_PER_BATCH]
                del found[:MAX_FILES_PER_BATCH]
        if found:
            yield found

    def _take_entry(
        self, directory: bytes, handle: int, entry: os.DirEntry[str], found: list[Sighting], waiting: list[bytes]
    ) -> None:
        path = os.path.join(directory, os.fsencode(entry.name))
        try:
            info = entry.stat(follow_symlinks=False)
        except OSError:
            return  # gone: announced
        is_directory = stat.S_ISDIR(info.st_mode)
        if not (is_directory or stat.S_ISREG(info.st_mode)) or self.is_ignored(path, is_directory=is_directory):
            return
        if self._is_too_long(path):
            return
        if is_directory:
            waiting.append(path)
            return
        if info.st_nlink > 1:
            self._watch_file(path, handle, entry.name)
        found.append(Sighting(path, Happening.SETTLE, signature_of(info)))

    def _watch_file(self, path: bytes, directory: int, name: str) -> None:
        try:
            handle = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
        except OSError:
            return
        try:
            self._watches.place(path, handle, kernel.WATCH_FILE)
        finally:
            os.close(handle)
