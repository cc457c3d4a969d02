# SPDX-License-Identifier: Apache-2.0
"""Where records are: a bounded number in memory, all of them on the bus, each made anew before it expires.

What is written to the bus is the last state of each file, one write at a time, so that no older document overtakes a
newer one. A failure is tried again; while the bus is away, memory and the NSM do.
"""

from __future__ import annotations

import asyncio
import collections
import time
from typing import TYPE_CHECKING

from enclavekit_core.bus import BUCKET_DOCUMENTS, key_of_path
from enclavekit_core.bus_connection import MAX_RETRY_S, MIN_RETRY_S, Bus
from enclavekit_core.errors import RemoteProtocolError, VerificationError
from enclavekit_core.logs import get_logger

from enclavekit_ra_web_srv.record_check import RecordCheck
from enclavekit_ra_web_srv.records import Record, decode_record, encode_record

if TYPE_CHECKING:
    from nats.js.kv import KeyValue

MAX_HOT = 4000  # of 6 KB each
MAX_UNWRITTEN = 4000  # the oldest is dropped: it is read back from nowhere, and made again when asked for
REFRESH_BEFORE_MS = 10 * 60 * 1000  # of the three hours that a leaf certificate lives
MAX_STORE_BYTES = 96 * 1024 * 1024  # of the bus's 256 MiB: hashes must always find room
READ_TIMEOUT_S = 1.0  # the NSM makes a document faster than a bus in trouble finds one

log = get_logger("ra-web-srv")


class RecordStore:
    def __init__(self, bus: Bus | None) -> None:
        """Without a bus, records are kept in memory only."""
        self._bus = bus
        self.check: RecordCheck | None = None
        """Of what is read back; until it is there, nothing is."""
        self._hot: collections.OrderedDict[bytes, Record] = collections.OrderedDict()
        self._unwritten: collections.OrderedDict[bytes, Record | None] = collections.OrderedDict()
        self._work = asyncio.Event()
        self._bucket: KeyValue | None = None
        self.read_back = self.refused = self.written = self.deleted = 0

    @property
    def hot(self) -> int:
        return len(self._hot)

    def peek(self, path: bytes, digest: bytes) -> Record | None:
        """Return the record in memory, if it is of this content and lives long enough."""
        record = self._hot.get(path)
        if record is None or record.digest != digest or not _is_fresh(record):
            return None
        self._hot.move_to_end(path)
        return record

    async def find(self, path: bytes, digest: bytes) -> Record | None:
        """Return the record from memory or from the bus; None: it has to be made."""
        found = self.peek(path, digest)
        if found is not None or path in self._hot or path in self._unwritten or self._bus is None or self.check is None:
            return found  # what is in memory is newer than what is on the bus
        record = await self._read(path)
        if record is None or record.digest != digest or not _is_fresh(record):
            return None
        self.read_back += 1
        self._keep(record)
        return record

    def put(self, record: Record) -> None:
        """Keep a record that was just made."""
        self._keep(record)
        self._write(record.path, record)

    def forget(self, path: bytes) -> None:
        """The file is gone: no record of it is handed out again, here or after a restart."""
        self._hot.pop(path, None)
        self._write(path, None)
        self.deleted += 1

    def forget_if_kept(self, path: bytes) -> None:
        """As `forget`, for a file that may never have had a record."""
        if path in self._hot:
            self.forget(path)

    def expiring(self) -> list[Record]:
        """Return the records in memory that should be made anew."""
        return [record for record in self._hot.values() if not _is_fresh(record)]

    async def run(self) -> None:
        """Write to the bus until cancelled."""
        from nats.errors import Error

        delay_s = MIN_RETRY_S
        while True:
            if self._bus is None or not self._unwritten:
                self._work.clear()
                await self._work.wait()
                continue
            path, record = next(iter(self._unwritten.items()))
            try:
                bucket, key = await self._open(), key_of_path(path)
                await (bucket.delete(key) if record is None else bucket.put(key, encode_record(record)))
                self.written += 1
                delay_s = MIN_RETRY_S
            except (Error, TimeoutError, OSError) as exc:
                log.debug("cannot keep a record on the bus, trying again", cause=str(exc) or repr(exc))
                self._bucket = None
                await asyncio.sleep(delay_s)
                delay_s = min(2 * delay_s, MAX_RETRY_S)
                continue
            if self._unwritten.get(path) is record:
                del self._unwritten[path]

    def _keep(self, record: Record) -> None:
        self._hot[record.path] = record
        self._hot.move_to_end(record.path)
        while len(self._hot) > MAX_HOT:
            self._hot.popitem(last=False)

    def _write(self, path: bytes, record: Record | None) -> None:
        if self._bus is None:
            return
        self._unwritten.pop(path, None)
        self._unwritten[path] = record
        while len(self._unwritten) > MAX_UNWRITTEN:
            self._unwritten.popitem(last=False)
        self._work.set()

    async def _open(self) -> KeyValue:
        if self._bucket is None:
            if self._bus is None or not self._bus.is_connected:
                raise TimeoutError
            self._bucket = await self._bus.bucket(BUCKET_DOCUMENTS, create=True, max_bytes=MAX_STORE_BYTES)
        return self._bucket

    async def _read(self, path: bytes) -> Record | None:
        from nats.errors import Error
        from nats.js.errors import KeyNotFoundError

        assert self.check is not None
        try:
            async with asyncio.timeout(READ_TIMEOUT_S):
                entry = await (await self._open()).get(key_of_path(path))
            record = decode_record(path, entry.value or b"")
            return await asyncio.to_thread(self.check.check, record, _now_ms())
        except KeyNotFoundError:
            return None
        except (Error, TimeoutError, OSError):
            self._bucket = None
            return None
        except (RemoteProtocolError, VerificationError) as exc:
            # expired, or of the boot before; or somebody writes to the bus who should not
            self.refused += 1
            log.debug("a record on the bus is of no use", cause=str(exc))
            return None


def _is_fresh(record: Record) -> bool:
    return record.expires_ms - _now_ms() > REFRESH_BEFORE_MS


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
