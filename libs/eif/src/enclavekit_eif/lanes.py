# SPDX-License-Identifier: Apache-2.0
"""Hand chunks of data to several consumers, each in a thread of its own and in order.

hashlib, zlib.crc32 and writes drop the GIL, so that a byte goes through two hashes, the CRC and the disk side by side.
A slow consumer holds up the reader after MAX_CHUNKS_AHEAD chunks: memory stays constant.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any

MAX_CHUNKS_AHEAD = 8  # of CHUNK_BYTES each: enough that no core waits while another chunk is being read


class Lanes:
    """`with Lanes() as lanes: lanes.feed(chunk, hash.update, write); lanes.drain()`: consumer n runs in thread n."""

    def __init__(self) -> None:
        self._threads: list[ThreadPoolExecutor] = []
        self._running: deque[list[Future[Any]]] = deque()

    def feed(self, chunk: bytes, *consumers: Callable[[bytes], object]) -> None:
        """Give `chunk` to each consumer; what one of an earlier chunk raised is raised here or by `drain`."""
        while len(self._threads) < len(consumers):
            self._threads.append(ThreadPoolExecutor(1))
        self._running.append(
            [thread.submit(consumer, chunk) for thread, consumer in zip(self._threads, consumers, strict=False)]
        )
        if len(self._running) > MAX_CHUNKS_AHEAD:
            self._finish_one()

    def drain(self) -> None:
        """Wait until all is consumed; afterwards consumers may be read, or change threads."""
        while self._running:
            self._finish_one()

    def _finish_one(self) -> None:
        for future in self._running.popleft():
            future.result()

    def __enter__(self) -> Lanes:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for thread in self._threads:
            thread.shutdown(cancel_futures=True)
