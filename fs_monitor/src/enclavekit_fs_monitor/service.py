# SPDX-License-Identifier: Apache-2.0
"""fs-monitor put together: events and scans -> tracker -> hash workers -> publisher."""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
import time
from collections.abc import Iterable
from typing import Any

from enclavekit_core.aio import end_tasks
from enclavekit_core.bus import SERVICE_FS_MONITOR
from enclavekit_core.bus_connection import Bus, load_credentials
from enclavekit_core.errors import ConfigError
from enclavekit_core.logs import get_logger

from enclavekit_fs_monitor import readiness
from enclavekit_fs_monitor.config import Config, check
from enclavekit_fs_monitor.file_state import Deed, Happening, State
from enclavekit_fs_monitor.hasher import Finding, Hasher
from enclavekit_fs_monitor.ignore_file import IgnoreFile
from enclavekit_fs_monitor.ignore_rules import parse_rules
from enclavekit_fs_monitor.inotify import Inotify
from enclavekit_fs_monitor.metrics import Counters, Lag
from enclavekit_fs_monitor.mount_table import concerns, kernel_mounts
from enclavekit_fs_monitor.mount_watch import MountWatch
from enclavekit_fs_monitor.publisher import Buckets, Publisher
from enclavekit_fs_monitor.questions import serve
from enclavekit_fs_monitor.root_watch import RootWatch
from enclavekit_fs_monitor.tracker import Action, Tracker
from enclavekit_fs_monitor.waiting import Patience
from enclavekit_fs_monitor.watch_tree import Sighting, WatchTree

FLUSH_TIMEOUT_S = 5.0  # at the end; enclave_init allows 10 s by default

log = get_logger("fs-monitor")


class Monitor:
    """Watches its roots until `run` is told to stop."""

    def __init__(self, config: Config) -> None:
        """Raises InputError for a root that is no directory, ConfigError, DeviceError without inotify."""
        config = check(config)
        self.config = config
        credentials = load_credentials(config.credentials)
        self.ignore_file = IgnoreFile(config.ignore_file)
        self.ignore_error = ""
        self._mounts = MountWatch()
        self.counters, self.lag = Counters(), Lag()
        # the clock's microseconds lie above every generation of an earlier run: nobody sees that many changes
        self.tracker = Tracker(Patience(config.quiet_s, config.settle_s), time.time_ns() // 1000)
        self.roots = [self._open_root(root) for root in config.roots]
        self.hasher = Hasher(self._open_file, self._take_findings)
        self.bus = Bus(config.nats_url, SERVICE_FS_MONITOR, credentials)
        buckets = Buckets(config.kv_bucket_name, config.records_bucket_name, config.replicas)
        self.publisher = Publisher(
            *(self.bus, buckets, self.tracker, self.counters), is_known=self._is_known, acknowledge=self._acknowledge
        )
        self.ready = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None

    # life -------------------------------------------------------------------------------------------------------

    async def run(self, stop: asyncio.Event) -> None:
        """Watch, hash and publish until `stop` is set; what has happened by then is still published."""
        loop = asyncio.get_running_loop()
        watching: list[asyncio.Future[Any]] = [asyncio.ensure_future(root.run()) for root in self.roots]
        working: list[asyncio.Future[Any]] = [
            asyncio.ensure_future(part) for part in (self.hasher.run(), self.publisher.run(), self._become_ready())
        ]
        stopping = asyncio.ensure_future(stop.wait())
        servers = serve(self)
        loop.add_reader(self._mounts.fd, self._note_mounts)
        loop.add_reader(self.ignore_file.fd, self._note_ignore_file)
        endless = [*watching, *working[:2], stopping]
        try:
            await asyncio.wait(endless, return_when=asyncio.FIRST_COMPLETED)
            for task in endless:
                if task.done():
                    task.result()  # none but the last ends but by an error
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._flush(watching), FLUSH_TIMEOUT_S)
        finally:
            loop.remove_reader(self._mounts.fd)
            loop.remove_reader(self.ignore_file.fd)
            if self._timer is not None:
                self._timer.cancel()
            await end_tasks([*watching, *working, stopping])
            for server in servers:
                await loop.run_in_executor(None, server.close)
            await self.bus.close()
            self.hasher.close()
            for root in self.roots:
                root.close()
            self.ignore_file.close()
            self._mounts.close()
        log.info("stopped", files=len(self.tracker), published=self.counters.published)

    async def _flush(self, watching: list[asyncio.Future[Any]]) -> None:
        """Take the last events, hash what waits for its quiet time, and publish everything."""
        readiness.notify("STOPPING=1")
        for root in self.roots:
            root.stop()
        await asyncio.gather(*watching)
        self._perform(self.tracker.take_due(time.monotonic() + self.config.quiet_s + self.config.settle_s))
        while len(self.hasher.queue) or not self.publisher.idle.is_set():
            if len(self.hasher.queue):
                await self.hasher.wait_idle()
            else:
                await self.publisher.idle.wait()

    async def _become_ready(self) -> None:
        """Ready: what the first scan found has been hashed, and is on the bus."""
        for root in self.roots:
            await root.first_scan.wait()
            self.publisher.settle_found()
        while len(self.hasher.queue) or not self.publisher.idle.is_set():
            await self.hasher.wait_idle()
            await self.publisher.idle.wait()
        self.ready.set()
        readiness.notify("READY=1")
        log.info("ready", files=len(self.tracker))

    # what happens -----------------------------------------------------------------------------------------------

    def _observe(self, sightings: Iterable[Sighting]) -> None:
        now_s = time.monotonic()
        for seen in sightings:
            if seen.signature is not None:
                actions = self.tracker.find(seen.path, seen.signature, now_s)
            else:
                actions = self.tracker.observe(seen.path, seen.happening, now_s)
            record = self.tracker.get(seen.path)
            if record is None:
                self.lag.drop(seen.path)
            elif record.state is not State.CLOSED:
                self.lag.begin(seen.path, now_s)
            self._perform(actions)
        self._set_timer()

    def _take_findings(self, findings: list[Finding]) -> None:
        now_s = time.monotonic()
        for finding in findings:
            assert finding.outcome is not None
            if finding.result is not None:
                self.counters.hashed_files += 1
                self.counters.hashed_bytes += finding.result.size_bytes
            elif finding.outcome is not Happening.VANISH:
                self.counters.unstable_files += finding.outcome is Happening.UNSTABLE
                self.counters.unreadable_files += finding.outcome is Happening.UNREADABLE
            if finding.outcome is not Happening.HASHED:
                self.lag.drop(finding.path)  # whoever holds it open is not our delay
            self._perform(self.tracker.finish(finding.path, finding.generation, finding.outcome, now_s, finding.result))
        self._set_timer()

    def _perform(self, actions: Iterable[Action]) -> None:
        for action in actions:
            if action.deed is Deed.HASH:
                self.hasher.put(action.path, action.generation)
            elif action.deed is Deed.PUBLISH:
                assert action.value is not None
                self.publisher.put(action.path, action.value, action.generation)
            else:
                self.publisher.withdraw(action.path)

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        due_s = self.tracker.next_due_s()
        if due_s is not None:
            pause_s = max(0.0, due_s - time.monotonic())
            self._timer = asyncio.get_running_loop().call_later(pause_s, self._take_due)

    def _take_due(self) -> None:
        """Hash the files that were quiet for long enough."""
        self._timer = None
        self._perform(self.tracker.take_due(time.monotonic()))
        self._set_timer()

    def _acknowledge(self, path: bytes) -> None:
        record = self.tracker.get(path)
        if record is None or record.state is State.CLOSED:
            self.lag.end(path, time.monotonic())

    # the trees --------------------------------------------------------------------------------------------------

    def _open_root(self, directory: str) -> RootWatch:
        inotify = Inotify()
        root = os.fsencode(os.path.realpath(directory))
        rules = parse_rules(self.ignore_file.text, root, self.ignore_file.path)
        tree = WatchTree(directory, inotify, rules, self._excluded())
        return RootWatch(tree, inotify, self.tracker, self._observe, self.config.rescan_interval_s)

    def _excluded(self) -> frozenset[bytes]:
        own = {os.fsencode(os.readlink(f"/proc/self/fd/{handle}")) for handle in (1, 2) if _is_file(handle)}
        told = {os.fsencode(os.path.realpath(path)) for path in self.config.excluded}
        return kernel_mounts(self._mounts.mounts) | own | told

    def _note_mounts(self) -> None:
        changes = self._mounts.take_changes()
        excluded = self._excluded()
        for root in self.roots:
            root.tree.excluded = excluded
            if any(concerns(mount, root.tree.root) for mount in changes):
                root.want_scan()

    def _note_ignore_file(self) -> None:
        try:
            if self.ignore_file.has_changed():
                texts = [parse_rules(self.ignore_file.text, r.tree.root, self.ignore_file.path) for r in self.roots]
                for root, rules in zip(self.roots, texts, strict=True):
                    root.tree.rules = rules
                    root.want_scan()
                self.ignore_error = ""
                log.info("read the ignore file again", patterns=self.roots[0].tree.rules.count)
        except ConfigError as exc:
            log.error("cannot use the ignore file, going on with what it said before", cause=str(exc))
            self.ignore_error = str(exc)

    def root_of(self, path: bytes) -> RootWatch | None:
        """Return the root that `path` is or lies in."""
        for root in self.roots:
            if path == root.tree.root or path.startswith(root.tree.root.rstrip(b"/") + b"/"):
                return root
        return None

    def _is_known(self, path: bytes) -> bool:
        root = self.root_of(path)
        return root is not None and root.first_scan.is_set()

    def _open_file(self, path: bytes) -> int:
        root = self.root_of(path)
        assert root is not None  # only what one of them saw is hashed
        return root.tree.open_file(path)


def _is_file(handle: int) -> bool:
    try:
        return stat.S_ISREG(os.fstat(handle).st_mode)
    except OSError:
        return False
