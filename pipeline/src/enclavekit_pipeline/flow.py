# SPDX-License-Identifier: Apache-2.0
"""Credit of one direction of data: the sender never has more under way than the receiver has room for. Pure."""

from __future__ import annotations

from enclavekit_core.errors import LocalProtocolError, RemoteProtocolError

WINDOW_BYTES = 1024 * 1024  # keeps a link of 1 ms at 1 GB/s busy, and bounds what one stream can make us hold
GRANT_BYTES = WINDOW_BYTES // 4  # granting back in larger steps costs fewer frames
MAX_CREDIT_BYTES = 2**31  # nobody grants more; a peer that adds up to this is broken


class SendCredit:
    """What we may still send."""

    def __init__(self, available: int = WINDOW_BYTES) -> None:
        self.available = available

    def spend(self, count: int) -> None:
        if count > self.available:
            raise LocalProtocolError(f"cannot send {count} bytes: the credit is {self.available}")
        self.available -= count

    def grant(self, count: int) -> None:
        """Raises RemoteProtocolError if the peer grants without end."""
        self.available += count
        if self.available > MAX_CREDIT_BYTES:
            raise RemoteProtocolError("cannot read frame: credit without end")


class ReceiveCredit:
    """What the peer may still send, and what we owe it."""

    def __init__(self, window: int = WINDOW_BYTES) -> None:
        self._window, self._owed = window, 0

    def receive(self, count: int) -> None:
        """Count bytes that arrived. Raises RemoteProtocolError if the peer had no credit for them."""
        if count > self._window:
            raise RemoteProtocolError("cannot read frame: more data than was granted")
        self._window -= count

    def consume(self, count: int) -> int:
        """Count bytes that have been passed on; return what to grant now, often 0."""
        self._owed += count
        if self._owed < GRANT_BYTES:
            return 0
        granted, self._owed = self._owed, 0
        self._window += granted
        return granted
