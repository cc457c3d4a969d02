# SPDX-License-Identifier: Apache-2.0
"""One session: the datagrams of a connected socket on a stream, and back. In place of `Relay`.

What the stream does not take waits where the kernel keeps it, up to the socket's buffer, and is dropped there as
datagrams are: nothing piles up here but what one read took. A datagram that its socket does not take is lost. The
stream's end is the session's.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Callable
from dataclasses import dataclass

from enclavekit_core.errors import RemoteProtocolError

from enclavekit_pf_proxy.relay import ENDING, close_socket
from enclavekit_pf_proxy.wire.datagrams import MAX_DATAGRAM_BYTES, DatagramDecoder, encode_length

STREAM_READ_BYTES = 64 * 1024
BATCH = 32  # datagrams of one write, which is at most 2 MiB
MAX_ROUNDS = 4  # batches or reads of one direction before others get their turn


@dataclass(slots=True)
class Count:
    """One direction."""

    total: int = 0
    """Bytes taken from its source, lengths included where that is the stream."""
    dropped: int = 0
    """Datagrams that were lost here: too long, or not taken."""


class DatagramRelay:
    """Two connected, non-blocking sockets, one a stream. Owns both and closes them."""

    __slots__ = (
        "_datagrams",
        "_decoder",
        "_held",
        "_max_bytes",
        "_pending",
        "_stream",
        "_stream_ending",
        "_stream_side",
        "_want_write",
        "changed",
        "closed",
        "flows",
        "half_closed",
        "last_activity",
        "lingering",
        "sockets",
    )

    def __init__(
        self,
        client: socket.socket,
        upstream: socket.socket,
        now: float,
        want_write: Callable[[int], None],
        held: tuple[bytes, bytes],
        max_bytes: int = MAX_DATAGRAM_BYTES,
    ) -> None:
        """As `Relay`. `held`: bytes of the stream that come first, framed, towards upstream and client.

        Args: max_bytes: a longer datagram is dropped.
        """
        self.sockets = (client, upstream)
        self._stream_side = 0 if client.type == socket.SOCK_STREAM else 1
        self._stream, self._datagrams = self.sockets[self._stream_side], self.sockets[1 - self._stream_side]
        self._want_write, self._max_bytes = want_write, max_bytes
        self._decoder = DatagramDecoder()
        self._pending = 0b11
        self._stream_ending = False
        """Whether an end was announced: a short read then does not mean that there is nothing more to read."""
        self.last_activity = now
        self.changed = self.closed = False
        self.half_closed = self.lingering = False  # a session has no half
        self.flows = (Count(), Count())
        self._held = held[1 - self._stream_side]
        """Framed, and not sent yet."""
        self._deliver(held[self._stream_side])

    def inject(self, framed: bytes, max_bytes: int) -> None:
        """Send a datagram that came in elsewhere; lost if `max_bytes` wait already."""
        if self.closed:
            return
        if not self._held:
            self._write([framed])
        elif len(self._held) + len(framed) <= max_bytes:
            self._held += framed  # behind those before it
        else:
            self.flows[1 - self._stream_side].dropped += 1

    def notice(self, side: int, mask: int) -> None:
        """Take epoll's word about one side."""
        if mask & (select.EPOLLIN | ENDING):
            self._pending |= 1 << side
            if mask & ENDING and side == self._stream_side:
                self._stream_ending = True
        if mask & select.EPOLLOUT and side == self._stream_side:
            self._pending |= 2 >> side

    def pump(self, now: float) -> bool:
        """Move what can be moved; return whether more could be moved at once."""
        before = self.flows[0].total + self.flows[1].total
        pending, self._pending = self._pending, 0
        for side in (0, 1):
            if pending >> side & 1 and not self.closed:
                more = self._from_stream() if side == self._stream_side else self._from_datagrams()
                if more:
                    self._pending |= 1 << side
        if self.flows[0].total + self.flows[1].total != before:
            self.last_activity = now
        return self._pending != 0 and not self.closed

    def close(self, *, reset: bool = False) -> None:
        """Close everything."""
        if not self.closed:
            self.closed = self.changed = True
            close_socket(self._stream, reset=reset)
            self._datagrams.close()

    def _from_stream(self) -> bool:
        """Return whether there may be more to read."""
        for _ in range(MAX_ROUNDS):
            try:
                data = self._stream.recv(STREAM_READ_BYTES)
            except BlockingIOError:
                return False
            except OSError:
                data = b""
            if not data:
                self.close()
                return False
            self.flows[self._stream_side].total += len(data)
            self._deliver(data)
            if self.closed:
                return False
            if len(data) < STREAM_READ_BYTES and not self._stream_ending:
                return False  # what comes later is an event of its own
        return True

    def _deliver(self, data: bytes) -> None:
        """Send the datagrams that `data` of the stream completes."""
        try:
            found = self._decoder.feed(data)
        except RemoteProtocolError:
            self.close(reset=True)
            return
        for datagram in found:
            try:
                if len(datagram) > self._max_bytes:
                    raise OSError
                self._datagrams.send(datagram)
            except OSError:
                # no room, longer than the path takes, or an ICMP message about an earlier one, which is read away
                # so that the next one goes
                self.flows[self._stream_side].dropped += 1

    def _from_datagrams(self) -> bool:
        """Return whether there may be more to read."""
        if self._held:
            self._write([])
        for _ in range(MAX_ROUNDS):
            if self._held or self.closed:
                return False  # the stream takes no more: `notice` follows
            pieces, more = self._read_batch()
            if pieces:
                self._write(pieces)
            if not more:
                return False
        return True

    def _read_batch(self) -> tuple[list[bytes], bool]:
        """Return framed datagrams in pieces, and whether there may be more."""
        flow = self.flows[1 - self._stream_side]
        pieces: list[bytes] = []
        for _ in range(BATCH):
            try:
                datagram = self._datagrams.recv(self._max_bytes + 1)
            except BlockingIOError:
                return pieces, False
            except OSError:
                continue  # an ICMP message: the client waits in vain, as it would without us
            if len(datagram) > self._max_bytes:
                flow.dropped += 1
                continue
            flow.total += len(datagram)
            pieces += (encode_length(len(datagram)), datagram)
        return pieces, True

    def _write(self, pieces: list[bytes]) -> None:
        """Send what is held and `pieces`; hold what is not taken."""
        if self._held:
            pieces = [self._held, *pieces]
        try:
            sent = self._stream.sendmsg(pieces)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.close()
            return
        self._held = b"" if sent == sum(map(len, pieces)) else b"".join(pieces)[sent:]
        if self._held:
            self._want_write(self._stream_side)
