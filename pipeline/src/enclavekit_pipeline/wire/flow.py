# SPDX-License-Identifier: Apache-2.0
"""Credit of one direction of data: the sender never has more under way than the receiver has room for. Pure.

Credit is counted in bytes, and a frame costs at least MIN_FRAME_COST: otherwise a million frames of one byte would fit
into a window and cost the receiver a hundred times what it granted.
"""

from __future__ import annotations

from enclavekit_core.errors import LocalProtocolError, RemoteProtocolError

WINDOW_BYTES = 2 * 1024 * 1024  # keeps a link of 1 ms at 1 GB/s busy, and bounds what one stream can make us hold
GRANT_BYTES = WINDOW_BYTES // 2  # granting back in larger steps costs fewer frames
MIN_FRAME_COST = 256  # about what a queued frame costs beside its payload
MAX_CREDIT_BYTES = 2**31  # nobody grants more; a peer that adds up to this is broken


def frame_cost(count: int) -> int:
    """Return the credit that a data frame of `count` bytes needs; the same on both ends."""
    return max(count, MIN_FRAME_COST)


class SendCredit:
    """What we may still send."""

    def __init__(self, available: int = WINDOW_BYTES) -> None:
        self._available = available

    def room(self, wanted: int) -> int:
        """Return how many of `wanted` bytes may be sent now; 0 is "wait"."""
        return min(wanted, self._available) if self._available >= MIN_FRAME_COST else 0

    def spend(self, count: int) -> None:
        """Count a frame of `count` bytes. Raises LocalProtocolError if there is no credit for it."""
        if frame_cost(count) > self._available:
            raise LocalProtocolError(f"cannot send {count} bytes: the credit is {self._available}")
        self._available -= frame_cost(count)

    def grant(self, count: int) -> None:
        """Raises RemoteProtocolError if the peer grants without end."""
        self._available += count
        if self._available > MAX_CREDIT_BYTES:
            raise RemoteProtocolError("cannot read frame: credit without end")


class ReceiveCredit:
    """What the peer may still send, and what we owe it."""

    def __init__(self, window: int = WINDOW_BYTES) -> None:
        self._window, self._owed = window, 0

    def receive(self, count: int) -> None:
        """Count a frame of `count` bytes. Raises RemoteProtocolError if the peer had no credit for it."""
        if frame_cost(count) > self._window:
            raise RemoteProtocolError("cannot read frame: more data than was granted")
        self._window -= frame_cost(count)

    def consume(self, count: int) -> int:
        """Count a frame of `count` bytes that has been passed on; return what to grant now, often 0."""
        self._owed += frame_cost(count)
        if self._owed < GRANT_BYTES:
            return 0
        granted, self._owed = self._owed, 0
        self._window += granted
        return granted
