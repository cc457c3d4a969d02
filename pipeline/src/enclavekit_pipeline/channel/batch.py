# SPDX-License-Identifier: Apache-2.0
"""Records on their way out, in memory that is used again: the next are put together while the last are being sent."""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass

from enclavekit_pipeline.wire.frames import RECORDS_BYTES
from enclavekit_pipeline.wire.tree_records import HEADER, MAX_BODY_BYTES, data_header

# each batch is handed from a thread to the event loop, which costs as much as sending 64 KiB: four whole frames
CAPACITY_BYTES = 4 * RECORDS_BYTES
BATCH_BYTES = CAPACITY_BYTES - HEADER.size - MAX_BODY_BYTES  # from here on one is full: a record might not find room


@dataclass(frozen=True)
class Batch:
    data: bytes | memoryview
    waits: bool = False
    """Answers are needed before there is more."""
    finished: bool = False


class BatchBuffer:
    """Two buffers that take turns: a batch is good until the one after the next is begun."""

    def __init__(self) -> None:
        self._memory: memoryview | None = None
        self._other: memoryview | None = None
        self.size = 0

    def begin(self) -> None:
        self._memory, self._other = self._other, self._memory
        self.size = 0

    @property
    def data(self) -> memoryview:
        """What has been put in since `begin`."""
        return self._room()[: self.size] if self.size else memoryview(b"")

    def _room(self) -> memoryview:
        # pages of its own, taken when they are written to: most copies are small, and nothing is left in the heap
        if self._memory is None:
            self._memory = memoryview(mmap.mmap(-1, CAPACITY_BYTES))
        return self._memory

    def add(self, record: bytes) -> None:
        """Put in a record; there is room for one of any kind below BATCH_BYTES."""
        end = self.size + len(record)
        self._room()[self.size : end] = record
        self.size = end

    def read(self, descriptor: int, offset: int, most: int | None) -> memoryview:
        """Put in a record of content, as much of the file as there is room for; return the content, empty at the end of
        the file. Raises OSError."""
        begin = self.size + HEADER.size
        end = CAPACITY_BYTES if most is None else min(CAPACITY_BYTES, begin + most)
        room = self._room()[begin:end]
        count = os.preadv(descriptor, [room], offset)
        if count:
            self.add(data_header(count))
            self.size += count
        return room[:count]
