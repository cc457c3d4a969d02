# SPDX-License-Identifier: Apache-2.0
"""Which files may be asked for: those that fs-monitor put on the bus, and those that somebody had generated.

A hash that stands on the bus is never passed on: the file is hashed again (`file_hasher`). The bus is followed by
revisions: one subscription brings first what is there, then every change, so that nothing falls between, and after an
outage only what has another revision, or another value, counts as changed.
"""

from __future__ import annotations

import asyncio
import bisect
import collections
from collections.abc import AsyncGenerator, Callable, Collection

from enclavekit_core.bus import path_of_key
from enclavekit_core.bus_connection import MAX_RETRY_S, MIN_RETRY_S, Bus, Entry, follow
from enclavekit_core.errors import RemoteProtocolError
from enclavekit_core.logs import get_logger

MAX_GENERATED = 100_000  # the oldest is forgotten, and can be generated again
MAX_DELETED = 10_000  # names of files that there were; of others it is only said that there are none
MAX_ON_BUS = 1_000_000  # as many as the bus's store holds; some 200 MB of names

log = get_logger("ra-web-srv")


class KnownFiles:
    def __init__(self, changed: Callable[[bytes, bytes | None], None] = lambda path, digest: None) -> None:
        """`changed` is told each path whose entry on the bus is another, with its hash there; None: deleted."""
        self._changed = changed
        self._generated: collections.OrderedDict[bytes, None] = collections.OrderedDict()
        self._on_bus: dict[bytes, int] = {}  # path -> `hash` of revision and value of its entry
        self._sorted: list[bytes] | None = None  # all names, until there is another
        self._deleted: collections.OrderedDict[bytes, None] = collections.OrderedDict()

    def __contains__(self, path: bytes) -> bool:
        return path in self._on_bus or path in self._generated

    @property
    def on_bus(self) -> int:
        """How many files fs-monitor has told of."""
        return len(self._on_bus)

    @property
    def deleted(self) -> Collection[bytes]:
        """Tombstones: files that were known, and are gone or withdrawn."""
        return self._deleted.keys()

    def page(self, below: bytes, after: bytes, limit: int) -> list[bytes]:
        """Return up to `limit` known files at or below `below` that come after `after`, sorted."""
        if self._sorted is None:  # once: from then on it is kept up to date, for sorting a million takes a second
            self._sorted = sorted(self._on_bus.keys() | self._generated.keys())
        names = self._sorted
        prefix = below if below.endswith(b"/") else below + b"/"
        found = []
        if below in self and below > after:
            found.append(below)
        start = bisect.bisect_right(names, after) if after >= prefix else bisect.bisect_left(names, prefix)
        for index in range(start, len(names)):
            if len(found) >= limit or not names[index].startswith(prefix):
                break
            found.append(names[index])
        return found[:limit]

    def add_generated(self, path: bytes) -> None:
        self._arrived(path)
        self._generated[path] = None
        self._generated.move_to_end(path)
        while len(self._generated) > MAX_GENERATED:
            oldest, _ = self._generated.popitem(last=False)
            if oldest not in self:
                self._unlist(oldest)

    def forget_generated(self, path: bytes) -> None:
        if path in self._generated:
            del self._generated[path]
            self._gone(path)

    def _arrived(self, path: bytes) -> None:
        if self._sorted is not None and path not in self:
            bisect.insort(self._sorted, path)
        self._deleted.pop(path, None)

    def _unlist(self, path: bytes) -> None:
        if self._sorted is not None:
            position = bisect.bisect_left(self._sorted, path)
            if self._sorted[position : position + 1] == [path]:
                del self._sorted[position]

    def _gone(self, path: bytes) -> None:
        if path in self:
            return  # by the other way it is still known
        self._unlist(path)
        self._deleted[path] = None
        while len(self._deleted) > MAX_DELETED:
            self._deleted.popitem(last=False)

    async def follow_bus(self, bus: Bus, bucket_name: str) -> None:
        """Keep up with the bucket until cancelled, over any outage; after each the whole bucket is read again."""
        from nats.errors import Error

        await bus.connect()
        delay_s = MIN_RETRY_S
        while True:
            try:
                bus.changed.clear()
                changes = follow(await bus.bucket(bucket_name, create=False))
                try:
                    await self._take_until_outage(bus, changes)
                finally:
                    await changes.aclose()
                delay_s = MIN_RETRY_S
            except (Error, TimeoutError, OSError) as exc:
                # until fs-monitor has made the bucket there is none
                log.debug("cannot follow the bus, trying again", cause=str(exc) or repr(exc))
                await asyncio.sleep(delay_s)
                delay_s = min(2 * delay_s, MAX_RETRY_S / 5)

    async def _take_until_outage(self, bus: Bus, changes: AsyncGenerator[Entry | None, None]) -> None:
        listed: set[bytes] | None = set()
        outage = asyncio.ensure_future(bus.changed.wait())
        following: asyncio.Future[Entry | None] | None = None
        try:
            while True:
                following = asyncio.ensure_future(anext(changes))
                await asyncio.wait([following, outage], return_when=asyncio.FIRST_COMPLETED)
                if outage.done():
                    return
                entry = following.result()
                if entry is not None:
                    self._take(entry)
                    if listed is not None and (path := _path_of(entry)):
                        listed.add(path)
                elif listed is not None:
                    for path in self._on_bus.keys() - listed:  # what was deleted while we were away
                        del self._on_bus[path]
                        self._gone(path)
                        self._changed(path, None)
                    listed = None
        finally:
            outage.cancel()
            if following is not None and not following.done():
                following.cancel()
                await asyncio.gather(following, return_exceptions=True)

    def _take(self, entry: Entry) -> None:
        path = _path_of(entry)
        if path is None:
            return
        if entry.value is None:
            if self._on_bus.pop(path, None) is not None:
                self._gone(path)
                self._changed(path, None)
        elif path in self._on_bus or len(self._on_bus) < MAX_ON_BUS:
            # with the value, for a bucket that was made anew counts its revisions from the start
            seen = hash((entry.revision, entry.value))
            if self._on_bus.get(path) != seen:
                self._arrived(path)
                self._on_bus[path] = seen
                self._changed(path, entry.value)
        else:
            log.error("cannot keep more files of the bus", limit=MAX_ON_BUS)


def _path_of(entry: Entry) -> bytes | None:
    try:
        return path_of_key(entry.key)
    except RemoteProtocolError:
        log.warning("the bucket holds a key that is no path", key=entry.key[:100])
        return None
