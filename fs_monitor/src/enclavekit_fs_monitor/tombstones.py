# SPDX-License-Identifier: Apache-2.0
"""Take away what deletions leave in a bucket.

A deletion is a message of its own that stays for ever, one for each path that ever had a hash: files that come and go
would fill the store. It is removed when everybody who follows the bucket has had time to see it; who was away lists the
bucket anew, and does not find the key at all.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from enclavekit_core.logs import get_logger

if TYPE_CHECKING:
    from nats.js.client import JetStreamContext

KEEP_S = 60.0
MAX_PURGED = 100  # at once: hashes that come meanwhile wait for it
MAX_KEPT = 100_000  # more than this and the oldest stay: some 20 MB of the store

log = get_logger("fs-monitor")


class Tombstones:
    def __init__(self) -> None:
        self._due: deque[tuple[float, str, str, int]] = deque(maxlen=MAX_KEPT)
        self._refused = False

    def __len__(self) -> int:
        return len(self._due)

    def add(self, bucket: str, key: str, sequence: int, now_s: float) -> None:
        if not self._refused:
            self._due.append((now_s + KEEP_S, bucket, key, sequence))

    def next_due_s(self) -> float | None:
        return self._due[0][0] if self._due else None

    async def purge_due(self, stream: JetStreamContext, now_s: float) -> None:
        """Remove some of what is due. Raises nats.errors.Error when the bus is away."""
        from nats.errors import TimeoutError as NoAnswerError

        for _ in range(MAX_PURGED):
            if not self._due or self._due[0][0] > now_s:
                return
            _, bucket, key, sequence = self._due[0]
            try:
                # up to this very message: a hash that has been written to the key since stays
                await stream.purge_stream(f"KV_{bucket}", seq=sequence + 1, subject=f"$KV.{bucket}.{key}")
            except NoAnswerError:
                if not stream._nc.is_connected:
                    raise
                # an account without that permission gets no answer; deletions stay then
                log.warning("the bus does not let us remove what deletions leave", bucket=bucket)
                self._refused = True
                self._due.clear()
                return
            self._due.popleft()
