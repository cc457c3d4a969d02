# SPDX-License-Identifier: Apache-2.0
"""Threads that hash: one per core for anything, and one more for small files only.

Small files are taken in batches, for handing one to a thread costs as much as hashing it.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from enclavekit_core.file_hash import FileHash, Unstable, hash_open_file
from enclavekit_core.logs import get_logger

from enclavekit_fs_monitor.file_state import Happening
from enclavekit_fs_monitor.hash_queue import HashQueue

LARGE_BYTES = 4 * 1024 * 1024  # some 10 ms of hashing: as long as a small file may have to wait for another
MAX_BATCH = 32

log = get_logger("fs-monitor")


@dataclass(frozen=True, slots=True)
class Finding:
    """What came of one file."""

    path: bytes
    generation: int
    outcome: Happening | None
    """None: it is large, and this worker was not to read large files."""
    result: FileHash | None = None


class Hasher:
    """Takes paths from a queue and hands findings to `take`, in the event loop's thread."""

    def __init__(self, open_file: Callable[[bytes], int], take: Callable[[list[Finding]], None]) -> None:
        """`open_file` opens a path for reading, in a thread; FileNotFoundError if no regular file is there."""
        self.queue = HashQueue()
        self._open_file, self._take = open_file, take
        self._cores = len(os.sched_getaffinity(0))
        self._pool = ThreadPoolExecutor(self._cores + 1, thread_name_prefix="hash")
        self._signal = asyncio.Event()
        self._idle = asyncio.Event()

    @property
    def workers(self) -> int:
        return self._cores + 1

    def put(self, path: bytes, generation: int) -> None:
        self.queue.put(path, generation)
        self._idle.clear()
        self._signal.set()

    async def wait_idle(self) -> None:
        """Return when nothing waits and nothing is being hashed."""
        if len(self.queue):
            await self._idle.wait()

    async def run(self) -> None:
        """Hash until cancelled."""
        await asyncio.gather(self._work(small_only=True), *(self._work(small_only=False) for _ in range(self._cores)))

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def _work(self, *, small_only: bool) -> None:
        loop = asyncio.get_running_loop()
        while True:
            large = [] if small_only else self.queue.take_large()
            batch = large or self.queue.take(max(1, min(MAX_BATCH, self.queue.waiting // self.workers)))
            if not batch:
                self._signal.clear()
                await self._signal.wait()
                continue
            findings = await loop.run_in_executor(self._pool, self._hash, batch, bool(large))
            for finding in findings:
                if finding.outcome is None:
                    self.queue.defer(finding.path, finding.generation)
                else:
                    self.queue.done(finding.path)
            self._take([finding for finding in findings if finding.outcome is not None])
            # a large file for the others, or a newer generation that waited until this worker had let go
            self._signal.set()
            if not len(self.queue):
                self._idle.set()

    def _hash(self, batch: list[tuple[bytes, int]], is_large: bool) -> list[Finding]:
        return [self._hash_one(path, generation, is_large) for path, generation in batch]

    def _hash_one(self, path: bytes, generation: int, is_large: bool) -> Finding:
        try:
            handle = self._open_file(path)
        except FileNotFoundError:
            return Finding(path, generation, Happening.VANISH)
        except OSError as exc:
            return Finding(path, generation, _explain(path, exc))
        try:
            if not is_large and os.fstat(handle).st_size > LARGE_BYTES:
                return Finding(path, generation, None)
            # every change after this is announced to us by an event, so there is no need to wait for the clock
            result = hash_open_file(handle, await_tick=False, refuse_writers=True)
        except OSError as exc:
            return Finding(path, generation, _explain(path, exc))
        finally:
            os.close(handle)
        if isinstance(result, Unstable):
            return Finding(path, generation, Happening.UNSTABLE)
        return Finding(path, generation, Happening.HASHED, result)


def _explain(path: bytes, exc: OSError) -> Happening:
    if exc.errno in (errno.ELOOP, errno.ENOTDIR, errno.ENXIO):
        return Happening.VANISH  # replaced by a link, or a directory on the way was
    log.warning("cannot read file, trying again", path=os.fsdecode(path), cause=os.strerror(exc.errno or 0).lower())
    return Happening.UNREADABLE
