# SPDX-License-Identifier: Apache-2.0
"""Attest what fs-monitor finds, before anybody asks: one file at a time, the last state of each.

The bus says which file and which hash; the file is hashed again here, and only if both agree is there a document. A
file that has changed since has a newer entry on its way.
"""

from __future__ import annotations

import asyncio
import collections

from enclavekit_core.errors import EnclavekitError
from enclavekit_core.logs import get_logger

from enclavekit_ra_web_srv.evidence import Evidence
from enclavekit_ra_web_srv.fair_queue import ClientFullError, QueueFullError
from enclavekit_ra_web_srv.file_hasher import FileHasher, HasherBusyError
from enclavekit_ra_web_srv.nsm_worker import NsmTimeoutError
from enclavekit_ra_web_srv.paths import PathRefusedError, confine
from enclavekit_ra_web_srv.record_store import MAX_HOT, RecordStore

BUSY_PAUSE_S = 0.5  # requests go first
REFRESH_EVERY_S = 30.0  # records are made anew ten minutes before they end
BUSY = (ClientFullError, HasherBusyError, NsmTimeoutError, QueueFullError)

log = get_logger("ra-web-srv")


class AttestAhead:
    def __init__(self, roots: tuple[bytes, ...], hasher: FileHasher, evidence: Evidence, records: RecordStore) -> None:
        self._roots, self._hasher, self._evidence, self._records = roots, hasher, evidence, records
        self._wanted: collections.OrderedDict[bytes, bytes] = collections.OrderedDict()
        self._work = asyncio.Event()
        self.attested = 0
        """Documents that were made, since the start."""

    @property
    def waiting(self) -> int:
        """Files that the bus told of and that have no document yet."""
        return len(self._wanted)

    def note(self, path: bytes, digest: bytes | None) -> None:
        """Take note of what the bus says about a file now; None: it has gone."""
        self._wanted.pop(path, None)
        if digest is None:
            self._records.forget(path)
            return
        self._wanted[path] = digest
        while len(self._wanted) > MAX_HOT:
            self._wanted.popitem(last=False)  # more documents than that are not kept; it is attested when asked for
        self._work.set()

    async def run(self) -> None:
        """Attest until cancelled."""
        while True:
            if not self._wanted:
                self._work.clear()
                await self._work.wait()
            path, digest = next(iter(self._wanted.items()))
            try:
                await self._attest(path, digest)
            except BUSY:
                await asyncio.sleep(BUSY_PAUSE_S)
                continue
            except PathRefusedError:
                pass  # fs-monitor watches more than we may attest
            except EnclavekitError as exc:
                log.warning("cannot attest a file ahead, leaving it to whoever asks", cause=str(exc))
            if self._wanted.get(path) == digest:
                del self._wanted[path]

    async def refresh(self) -> None:
        """Have the records that are about to expire made anew, until cancelled."""
        while True:
            await asyncio.sleep(REFRESH_EVERY_S)
            for record in self._records.expiring():
                self.note(record.path, record.digest)

    async def _attest(self, path: bytes, digest: bytes) -> None:
        found = await self._hasher.hash(confine(path, self._roots))
        if found is not None and found.digest == digest:
            await self._evidence.of_file(path, digest, None)
            self.attested += 1
