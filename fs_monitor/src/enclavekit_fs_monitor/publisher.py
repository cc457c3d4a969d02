# SPDX-License-Identifier: Apache-2.0
"""Keeps the bucket equal to what the tracker knows, over any outage of the bus.

Changes are collected per path, the last one wins, and are written in batches; a batch is over before the next begins,
so that two writes of one key never overtake each other. After every new connection the whole bucket is compared.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from enclavekit_core.bus import HASH_BYTES, key_of_path, path_of_key
from enclavekit_core.bus_connection import MAX_RETRY_S, MIN_RETRY_S, Bus, list_entries
from enclavekit_core.errors import RemoteProtocolError
from enclavekit_core.logs import get_logger

from enclavekit_fs_monitor.tracker import Tracker

if TYPE_CHECKING:
    from nats.js.kv import KeyValue

MAX_BATCH = 64  # writes in flight: hides the round trip, and is lost and repeated whole when the bus goes away

log = get_logger("fs-monitor")


class Publisher:
    """Writes hashes below `root` to `bucket_name`."""

    def __init__(self, bus: Bus, bucket_name: str, root: bytes, tracker: Tracker) -> None:
        self._bus, self._bucket_name, self._root, self._tracker = bus, bucket_name, root, tracker
        self._wanted: dict[bytes, bytes | None] = {}
        self._on_bus: set[bytes] = set()
        self._work = asyncio.Event()
        self._idle = asyncio.Event()
        self._scanned = False
        self.published = 0
        """Keys written since the start."""

    def put(self, path: bytes, digest: bytes) -> None:
        self._want(path, digest)

    def withdraw(self, path: bytes) -> None:
        self._want(path, None)

    def finish_scan(self) -> None:
        """A whole scan is done: the tracker knows every file, so that keys of others are left over from earlier."""
        if not self._scanned:
            self._scanned = True
            self._bus.changed.set()

    def _want(self, path: bytes, digest: bytes | None) -> None:
        self._wanted[path] = digest
        self._idle.clear()
        self._work.set()

    async def wait_idle(self) -> None:
        """Return when all that was asked for is on the bus."""
        await self._idle.wait()

    async def run(self) -> None:
        """Publish until cancelled."""
        from nats.errors import Error

        await self._bus.connect()
        delay_s = MIN_RETRY_S
        bucket: KeyValue | None = None
        while True:
            try:
                if bucket is None or self._bus.changed.is_set():
                    self._bus.changed.clear()
                    bucket = await self._bus.bucket(self._bucket_name, create=True)
                    await self._compare(bucket)
                if self._wanted:
                    await self._write_batch(bucket)
                else:
                    self._work.clear()
                    self._idle.set()
                    await self._wait_for_work()
                delay_s = MIN_RETRY_S
            except (Error, TimeoutError, OSError) as exc:
                log.warning("cannot write to the bus, trying again", cause=str(exc) or repr(exc))
                bucket = None  # the server may have lost it, and what it did with the last batch is not known
                await asyncio.sleep(delay_s)
                delay_s = min(2 * delay_s, MAX_RETRY_S)

    async def _wait_for_work(self) -> None:
        waits = [asyncio.ensure_future(self._work.wait()), asyncio.ensure_future(self._bus.changed.wait())]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    async def _compare(self, bucket: KeyValue) -> None:
        """Ask for whatever differs between the bucket and what is known."""
        on_bus: dict[bytes, bytes] = {}
        below = self._root.rstrip(b"/") + b"/"
        for key, value in (await list_entries(bucket)).items():
            try:
                path = path_of_key(key)
            except RemoteProtocolError:
                log.warning("the bucket holds a key that is not ours", key=key[:100])
                continue
            if path.startswith(below):
                on_bus[path] = value
        self._on_bus = set(on_bus)
        known = dict(self._tracker.closed())
        for path, digest in known.items():
            if on_bus.get(path) != digest and path not in self._wanted:
                self._want(path, digest)
        if self._scanned:
            for path in on_bus.keys() - self._tracker.paths() - self._wanted.keys():
                self._want(path, None)

    async def _write_batch(self, bucket: KeyValue) -> None:
        batch = {path: self._wanted[path] for path in list(self._wanted)[:MAX_BATCH]}
        results = await asyncio.gather(
            *(self._write(bucket, path, digest) for path, digest in batch.items()), return_exceptions=True
        )
        failure: BaseException | None = None
        for (path, digest), result in zip(batch.items(), results, strict=True):
            if isinstance(result, BaseException):
                failure = result
            elif self._wanted.get(path, b"") == digest:  # b"": no longer wanted at all, which no digest equals
                del self._wanted[path]
        if failure is not None:
            raise failure

    async def _write(self, bucket: KeyValue, path: bytes, digest: bytes | None) -> None:
        if digest is not None:
            assert len(digest) == HASH_BYTES
            await bucket.put(key_of_path(path), digest)
            self._on_bus.add(path)
            self.published += 1
        elif path in self._on_bus:
            await bucket.delete(key_of_path(path))
            self._on_bus.discard(path)
