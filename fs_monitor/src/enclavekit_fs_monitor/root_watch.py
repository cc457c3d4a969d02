# SPDX-License-Identifier: Apache-2.0
"""One root: reads its events, scans it when that is the only way to know, and says what it saw."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

from enclavekit_core.logs import get_logger

from enclavekit_fs_monitor.file_state import Happening
from enclavekit_fs_monitor.inotify import Inotify
from enclavekit_fs_monitor.tracker import Tracker
from enclavekit_fs_monitor.watch_tree import Observation, ScanNeeded, Sighting, TreeGone, WatchTree

BLIND_SCAN_S = 5.0  # how often the tree is scanned while something in it cannot be watched
ABSENT_SCAN_S = 1.0  # how often a root that is not there is looked for, where no event will tell of its return

log = get_logger("fs-monitor")


class RootWatch:
    """The loop around one `WatchTree`."""

    def __init__(
        self,
        tree: WatchTree,
        inotify: Inotify,
        tracker: Tracker,
        observe: Callable[[Iterable[Sighting]], None],
        rescan_interval_s: float,
    ) -> None:
        """`observe` is told every sighting, in the event loop's thread, before anything else happens to the tracker."""
        self.tree, self._inotify, self._tracker, self._observe = tree, inotify, tracker, observe
        self._rescan_interval_s = rescan_interval_s
        self._woken = asyncio.Event()
        self._scan_wanted = True
        self._stopping = self._has_told_blindness = False
        self.scans = 0
        """How many scans are complete; the first of them makes the root known."""
        self.first_scan = asyncio.Event()
        # the tree belongs to one thread at a time: this one
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="tree")

    @property
    def is_blind(self) -> bool:
        """Whether there are changes that nobody tells us of, so that only scans do."""
        return self.tree.unwatched > 0 or not self.tree.is_present

    def want_scan(self) -> None:
        """Scan soon: mounts or what is ignored have changed."""
        self._scan_wanted = True
        self._woken.set()

    async def run(self) -> None:
        """Watch until `stop`, and then as long as it takes to see what has happened by then."""
        while not self._stopping:
            if self._scan_wanted:
                self._scan_wanted = False
                await self._scan()
            elif await self._wait():
                await self._read()
            else:
                self._scan_wanted = True
        # not by cancelling: a read that is under way in the thread would take events that nobody hears of
        while await self._read() or self._scan_wanted:
            if self._scan_wanted:
                self._scan_wanted = False
                await self._scan()

    def stop(self) -> None:
        """Let `run` come to its end."""
        self._stopping = True
        self._woken.set()

    async def look_again(self, path: bytes) -> None:
        """Hash a file again of whose change nobody told us."""
        self._take([await asyncio.get_running_loop().run_in_executor(self._thread, self.tree.look_at, path)])

    def close(self) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)
        self._inotify.close()

    async def _wait(self) -> bool:
        """Wait for something to happen; return False when it is time to scan."""
        loop = asyncio.get_running_loop()
        pauses = [BLIND_SCAN_S] if self.tree.unwatched else []
        pauses += [ABSENT_SCAN_S] if not self.tree.is_present and not self.tree.is_awaited else []
        pauses += [self._rescan_interval_s] if self._rescan_interval_s else []
        self._woken.clear()
        if self._scan_wanted or self._stopping:
            return True
        loop.add_reader(self._inotify.fd, self._woken.set)
        try:
            await asyncio.wait_for(self._woken.wait(), min(pauses, default=None))
        except TimeoutError:
            return False
        finally:
            loop.remove_reader(self._inotify.fd)
        return True

    async def _read(self) -> bool:
        """Take what is queued; return whether there was anything."""
        before = self.tree.events
        self._take(await asyncio.get_running_loop().run_in_executor(self._thread, self.tree.read))
        return self.tree.events > before

    async def _scan(self) -> None:
        """Bring the tracker up to what is on disk now."""
        loop = asyncio.get_running_loop()
        was_present, had_too_long = self.tree.is_present, self.tree.too_long > 0
        before, found = set(self._tracker.paths_below(self.tree.root)), set[bytes]()
        portions = self.tree.scan()
        while True:
            portion = await loop.run_in_executor(self._thread, next, portions, None)
            if portion is None:
                break
            found.update(sighting.path for sighting in portion)
            self._take(portion)
            await self._read()  # the kernel's queue must not fill up meanwhile
        missing = before - found
        if missing:
            gone = await loop.run_in_executor(self._thread, lambda: [self.tree.look_at(path) for path in missing])
            self._take(sighting for sighting in gone if sighting.happening is Happening.VANISH)
        if self.tree.too_long and not had_too_long:
            log.error("cannot hash files below very long paths", root=os.fsdecode(self.tree.root))
        if self.tree.unwatched and not self._has_told_blindness:
            log.error(
                "cannot watch everything, scanning instead: raise fs.inotify.max_user_watches",
                root=os.fsdecode(self.tree.root),
                unwatched=self.tree.unwatched,
                every_s=BLIND_SCAN_S,
            )
        self._has_told_blindness = self.tree.unwatched > 0
        self.scans += 1
        if not self.first_scan.is_set() or was_present != self.tree.is_present:
            verb = "watching" if self.tree.is_present else "directory has gone, waiting for it"
            log.info(verb, directory=os.fsdecode(self.tree.root), files=len(found))
        self.first_scan.set()

    def _take(self, observations: Iterable[Observation]) -> None:
        sightings: list[Sighting] = []
        for seen in observations:
            match seen:
                case ScanNeeded():
                    self._scan_wanted = True
                case TreeGone(path):
                    self._observe(sightings)  # first: what was seen in it before it went
                    sightings = [Sighting(known, Happening.VANISH) for known in self._tracker.paths_below(path)]
                case Sighting():
                    sightings.append(seen)
        self._observe(sightings)
