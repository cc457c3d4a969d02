# SPDX-License-Identifier: Apache-2.0
"""The output of one job, bounded: a file without a name that is written round and round, so that the last is kept."""

from __future__ import annotations

import bisect
import os
import tempfile
import weakref
from dataclasses import dataclass

from enclavekit_pipeline.wire.frames import Kind

RING_BYTES = 1024 * 1024  # of each job; in an enclave the disk is memory
MAX_RECORDS = 8192  # pieces of output remembered with their kind; each costs about 100 bytes of memory


@dataclass(frozen=True)
class Piece:
    """Output of one kind."""

    kind: Kind
    start: int
    """Where it begins in all that was ever written."""
    data: bytes

    @property
    def end(self) -> int:
        return self.start + len(self.data)


class JobRing:
    """Positions count the bytes of all output from the beginning; the last `limit` of them, or fewer, are there."""

    def __init__(self, limit: int = RING_BYTES) -> None:
        """Raises OSError if there is no place for a file."""
        self._limit = limit
        with tempfile.TemporaryFile(buffering=0) as file:
            self._descriptor = os.dup(file.fileno())
        # a job that is forgotten may still be read by somebody: the last to let go of it closes the file
        weakref.finalize(self, os.close, self._descriptor)
        self._starts: list[int] = []  # of the records, in order; each reaches to the next, the last to `written`
        self._kinds: list[Kind] = []
        self.written = 0
        self.oldest = 0
        """Where what is kept begins."""

    def append(self, kind: Kind, data: bytes) -> None:
        """Write; a disk that is full loses output, not the job."""
        if not data:
            return
        if not self._kinds or self._kinds[-1] is not kind:
            self._starts.append(self.written)
            self._kinds.append(kind)
        kept = memoryview(data)[-self._limit :]
        position = self.written + len(data) - len(kept)
        self.written += len(data)
        self.oldest = max(self.oldest, self.written - self._limit)
        try:
            while kept:
                offset = position % self._limit
                count = os.pwrite(self._descriptor, kept[: self._limit - offset], offset)
                kept, position = kept[count:], position + count
        except OSError:
            self.oldest = self.written
        self._forget()

    def _forget(self) -> None:
        first = max(bisect.bisect_right(self._starts, self.oldest) - 1, 0)
        if len(self._starts) - first > MAX_RECORDS:
            first = len(self._starts) - MAX_RECORDS // 2  # in one go: moving the lists costs their length
            self.oldest = self._starts[first]
        if first > MAX_RECORDS or self._starts[first] == self.oldest:
            del self._starts[:first], self._kinds[:first]

    def read(self, position: int, count: int) -> Piece | None:
        """Return up to `count` bytes from `position`, or from the oldest there are; None if there are none."""
        position = max(position, self.oldest)
        if position >= self.written:
            return None
        index = bisect.bisect_right(self._starts, position) - 1
        end = self._starts[index + 1] if index + 1 < len(self._starts) else self.written
        offset = position % self._limit
        wanted = min(count, end - position, self._limit - offset)
        return Piece(self._kinds[index], position, os.pread(self._descriptor, wanted, offset))
