# SPDX-License-Identifier: Apache-2.0
"""A directory tree under watch: events in, sightings of files out.

An event is taken as a hint that a name may have changed, and the name is looked at again where that matters: the
kernel's queue tells of the past, and a scan may have seen further already. A directory is listed only once its watch is
in place, so that a file is either listed or announced. Links are never followed.

All of it blocks and belongs to one thread at a time.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass

from enclavekit_core.errors import InputError, describe_cause
from enclavekit_core.file_hash import open_beneath, open_regular, signature_of

from enclavekit_fs_monitor import inotify_events as kernel
from enclavekit_fs_monitor.file_state import Happening
from enclavekit_fs_monitor.inotify import Inotify

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

    def __init__(self, root: str, inotify: Inotify) -> None:
        """Raises InputError if `root` is no directory."""
        self.root = os.fsencode(os.path.realpath(root))
        self._inotify = inotify
        self._paths: dict[int, bytes] = {}
        self._wds: dict[bytes, int] = {}
        self._seen: set[int] = set()
        self.unwatched = 0
        """Directories that could not be watched since the last scan began: the limit of watches is reached."""
        self.overflows = 0
        try:
            os.close(os.open(self.root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
        except OSError as exc:
            raise InputError("watch", root, describe_cause(exc)) from exc

    def scan(self) -> Iterator[list[Sighting]]:
        """Watch and list the whole tree, portion by portion; lists nothing while the root is not there."""
        self.unwatched = 0
        self._seen = set()
        yield from self._scan_from(self.root)
        for wd in set(self._paths) - self._seen:
            # moved out of the tree or deleted, and the event that said so was lost
            self._inotify.remove(wd)
            self._forget(wd)

    @property
    def is_blind(self) -> bool:
        """Whether there are directories whose events we do not get; then only scans tell."""
        return self.unwatched > 0 or self.root not in self._wds

    def apply(self, events: list[kernel.Event]) -> list[Observation]:
        """Return what a read of events means."""
        seen: list[Observation] = []
        for event in kernel.drop_repeats(events):
            seen += self._apply(event)
        return seen

    def look_at(self, path: bytes) -> Sighting:
        """Look whether a regular file is at `path` now."""
        try:
            info = self._stat(path)
        except OSError:
            return Sighting(path, Happening.VANISH)
        return Sighting(path, Happening.SETTLE if stat.S_ISREG(info.st_mode) else Happening.VANISH)

    def open(self, path: bytes, flags: int) -> int:
        """Open a path of this tree, following no link below the root. Raises OSError."""
        root = os.open(self.root, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            return open_beneath(root, self._parts(path), flags)
        finally:
            os.close(root)

    def open_file(self, path: bytes) -> int:
        """Open a regular file of this tree for reading. Raises OSError; FileNotFoundError for what is none."""
        root = os.open(self.root, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            return open_regular(root, self._parts(path))
        finally:
            os.close(root)

    def _parts(self, path: bytes) -> list[bytes]:
        return [part for part in path[len(self.root) :].split(b"/") if part]

    def _stat(self, path: bytes) -> os.stat_result:
        handle = self.open(path, os.O_PATH)
        try:
            return os.fstat(handle)
        finally:
            os.close(handle)

    def _apply(self, event: kernel.Event) -> list[Observation]:
        if event.mask & kernel.IN_Q_OVERFLOW:
            self.overflows += 1
            return [SCAN_NEEDED]
        directory = self._paths.get(event.wd)
        if directory is None:
            return []  # of a watch that was given up
        if event.mask & kernel.IN_IGNORED:
            self._forget(event.wd)
            return [SCAN_NEEDED] if directory == self.root else []
        if not event.name:
            # about the directory itself; its parent tells the same with a name, and the root has no watched parent
            return [SCAN_NEEDED] if directory == self.root or event.mask & kernel.IN_UNMOUNT else []
        path = os.path.join(directory, event.name)
        if event.mask & kernel.IN_ISDIR:
            return self._apply_to_directory(event.mask, path)
        if event.mask & kernel.IN_MODIFY:
            return [Sighting(path, Happening.WRITE)]
        sighting = self.look_at(path)
        if event.mask & kernel.IN_CREATE and sighting.happening is Happening.SETTLE:
            return [Sighting(path, Happening.CREATE)]
        return [sighting]

    def _apply_to_directory(self, mask: int, path: bytes) -> list[Observation]:
        if mask & (kernel.IN_CREATE | kernel.IN_MOVED_TO):
            return [sighting for portion in self._scan_from(path) for sighting in portion]
        if mask & kernel.IN_MOVED_FROM:
            below = path + b"/"
            for wd in [wd for wd, known in self._paths.items() if known == path or known.startswith(below)]:
                self._inotify.remove(wd)
                self._forget(wd)
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
                self._watch(directory, handle)
                with os.scandir(handle) as entries:
                    for entry in entries:
                        path = os.path.join(directory, os.fsencode(entry.name))
                        try:
                            info = entry.stat(follow_symlinks=False)
                        except OSError:
                            continue
                        if stat.S_ISDIR(info.st_mode):
                            waiting.append(path)
                        elif stat.S_ISREG(info.st_mode):
                            found.append(Sighting(path, Happening.SETTLE, signature_of(info)))
            finally:
                os.close(handle)
            while len(found) >= MAX_FILES_PER_BATCH:
                yield found[:MAX_FILES_PER_BATCH]
                del found[:MAX_FILES_PER_BATCH]
        if found:
            yield found

    def _watch(self, path: bytes, handle: int) -> None:
        try:
            wd = self._inotify.add(handle)
        except OSError as exc:
            if exc.errno not in (errno.ENOSPC, errno.ENOMEM):
                return  # deleted since it was opened
            self.unwatched += 1
            return
        earlier = self._wds.get(path)
        if earlier is not None and earlier != wd:
            # another directory has this name now; where the former one went we are told by its own events
            self._inotify.remove(earlier)
            self._forget(earlier)
        self._forget(wd)
        self._paths[wd], self._wds[path] = path, wd
        self._seen.add(wd)

    def _forget(self, wd: int) -> None:
        path = self._paths.pop(wd, None)
        if path is not None and self._wds.get(path) == wd:
            del self._wds[path]
