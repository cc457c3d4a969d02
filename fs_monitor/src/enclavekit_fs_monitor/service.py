# SPDX-License-Identifier: Apache-2.0
"""The loop of fs-monitor: events and scans -> tracker -> hash workers -> publisher."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from enclavekit_core.bus import SERVICE_FS_MONITOR
from enclavekit_core.bus_connection import Bus, load_credentials
from enclavekit_core.file_hash import FileHash, Unstable, hash_open_file
from enclavekit_core.logs import get_logger

from enclavekit_fs_monitor.config import Settings
from enclavekit_fs_monitor.file_state import Deed, Happening
from enclavekit_fs_monitor.hash_queue import HashQueue
from enclavekit_fs_monitor.inotify import Inotify
from enclavekit_fs_monitor.publisher import Publisher
from enclavekit_fs_monitor.tracker import Action, Tracker
from enclavekit_fs_monitor.watch_tree import Observation, ScanNeeded, Sighting, TreeGone, WatchTree

MIN_WORKERS = 2  # one large file must not hold up all others
BLIND_SCAN_S = 5.0  # how often the tree is scanned while some directory cannot be watched
FLUSH_TIMEOUT_S = 2.0  # at the end; enclave_init allows 10 s by default

log = get_logger("fs-monitor")


class Monitor:
    """Watches one tree until `run` is cancelled."""

    def __init__(self, settings: Settings) -> None:
        """Raises InputError if the directory is none, ConfigError for bad credentials, DeviceError without inotify."""
        credentials = load_credentials(settings.credentials)
        self._inotify = Inotify()
        self._tree = WatchTree(settings.directory, self._inotify)
        self._tracker = Tracker()
        self._queue = HashQueue()
        self._queued = asyncio.Event()
        self._timer_changed = asyncio.Event()
        self._bus = Bus(settings.nats_url, SERVICE_FS_MONITOR, credentials)
        self._publisher = Publisher(self._bus, settings.kv_bucket_name, self._tree.root, self._tracker)
        self._workers = max(MIN_WORKERS, os.cpu_count() or 1)
        self._pool = ThreadPoolExecutor(self._workers, thread_name_prefix="hash")
        # the tree belongs to one thread at a time: this one
        self._tree_thread = ThreadPoolExecutor(1, thread_name_prefix="tree")

    async def run(self, stop: asyncio.Event) -> None:
        """Watch, hash and publish until `stop` is set; what is hashed by then is still published."""
        loops = [self._watch(), self._time(), self._publisher.run(), *(self._hash() for _ in range(self._workers))]
        tasks = [asyncio.ensure_future(loop) for loop in loops]
        stopping = asyncio.ensure_future(stop.wait())
        everything: list[asyncio.Future[Any]] = [*tasks, stopping]
        try:
            await asyncio.wait(everything, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                if task.done():
                    task.result()  # none of them ends but by an error
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._publisher.wait_idle(), FLUSH_TIMEOUT_S)
        finally:
            for part in everything:
                part.cancel()
            await asyncio.gather(*everything, return_exceptions=True)
            await self._bus.close()
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._tree_thread.shutdown(wait=True, cancel_futures=True)
            self._inotify.close()
        log.info("stopped", files=len(self._tracker), published=self._publisher.published)

    async def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        await self._scan()
        log.info("watching", directory=os.fsdecode(self._tree.root), files=len(self._tracker))
        while True:
            readable = await self._wait_readable(BLIND_SCAN_S if self._tree.is_blind else None)
            observations: list[Observation] = []
            if readable:
                observations = await loop.run_in_executor(self._tree_thread, self._read_events)
            lost = self._take(observations)
            if lost or (not readable and self._tree.is_blind):
                await self._scan()

    def _read_events(self) -> list[Observation]:
        return self._tree.apply(self._inotify.read())

    async def _wait_readable(self, timeout_s: float | None) -> bool:
        loop = asyncio.get_running_loop()
        ready = asyncio.Event()
        loop.add_reader(self._inotify.fd, ready.set)
        try:
            await asyncio.wait_for(ready.wait(), timeout_s)
        except TimeoutError:
            return False
        finally:
            loop.remove_reader(self._inotify.fd)
        return True

    async def _scan(self) -> None:
        """Bring the tracker up to what is on disk now."""
        loop = asyncio.get_running_loop()
        before, found = self._tracker.paths(), set[bytes]()
        portions = self._tree.scan()
        while True:
            portion = await loop.run_in_executor(self._tree_thread, next, portions, None)
            if portion is None:
                break
            found.update(sighting.path for sighting in portion)
            self._take(portion)
        missing = before - found
        if missing:
            gone = await loop.run_in_executor(self._tree_thread, lambda: [self._tree.look_at(p) for p in missing])
            self._take(gone)
        if self._tree.unwatched:
            log.error(
                "cannot watch every directory, scanning them instead: raise fs.inotify.max_user_watches",
                unwatched=self._tree.unwatched,
                every_s=BLIND_SCAN_S,
            )
        self._publisher.finish_scan()

    def _take(self, observations: Iterable[Observation]) -> bool:
        """Tell the tracker; return whether a scan is needed."""
        lost, now_s = False, time.monotonic()
        for seen in observations:
            match seen:
                case ScanNeeded():
                    lost = True
                case TreeGone(path):
                    below = path + b"/"
                    for known in [known for known in self._tracker.paths() if known.startswith(below)]:
                        self._perform(self._tracker.observe(known, Happening.VANISH, now_s))
                case Sighting(path, _, signature) if signature is not None:
                    self._perform(self._tracker.find(path, signature, now_s))
                case Sighting(path, happening, _):
                    self._perform(self._tracker.observe(path, happening, now_s))
        self._timer_changed.set()
        if lost:
            log.warning("events were lost, scanning", overflows=self._tree.overflows)
        return lost

    def _perform(self, actions: Iterable[Action]) -> None:
        for action in actions:
            match action.deed:
                case Deed.HASH:
                    self._queue.put(action.path, action.generation)
                    self._queued.set()
                case Deed.PUBLISH:
                    assert action.digest is not None
                    self._publisher.put(action.path, action.digest)
                case _:
                    self._publisher.withdraw(action.path)

    async def _time(self) -> None:
        """Hash the files that were quiet for long enough."""
        while True:
            self._timer_changed.clear()
            self._perform(self._tracker.take_due(time.monotonic()))
            due_s = self._tracker.next_due_s()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(
                    self._timer_changed.wait(), None if due_s is None else max(0.0, due_s - time.monotonic())
                )

    async def _hash(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            task = self._queue.take()
            if task is None:
                self._queued.clear()
                await self._queued.wait()
                continue
            path, generation = task
            try:
                outcome, result = await loop.run_in_executor(self._pool, self._read_file, path)
            finally:
                self._queue.done(path)
            self._perform(
                self._tracker.finish(
                    path,
                    generation,
                    outcome,
                    time.monotonic(),
                    digest=result.digest if result else None,
                    signature=result.signature if result else None,
                )
            )
            self._timer_changed.set()
            self._queued.set()  # a newer generation may have waited for this worker to let go of the file

    def _read_file(self, path: bytes) -> tuple[Happening, FileHash | None]:
        try:
            handle = self._tree.open_file(path)
        except FileNotFoundError:
            return Happening.VANISH, None
        except OSError as exc:
            return self._explain(path, exc)
        try:
            # every change after this is announced to us by an event, so there is no need to wait for the clock
            result = hash_open_file(handle, await_tick=False, refuse_writers=True)
        except OSError as exc:
            return self._explain(path, exc)
        finally:
            os.close(handle)
        return (Happening.UNSTABLE, None) if isinstance(result, Unstable) else (Happening.HASHED, result)

    def _explain(self, path: bytes, exc: OSError) -> tuple[Happening, None]:
        if exc.errno in (errno.ELOOP, errno.ENOTDIR, errno.ENXIO):
            return Happening.VANISH, None  # replaced by a link, or a directory on the way was
        log.warning("cannot read file, trying again", path=os.fsdecode(path), cause=os.strerror(exc.errno or 0).lower())
        return Happening.UNREADABLE, None
