# SPDX-License-Identifier: Apache-2.0
"""One session: the datagrams of a connected socket on a stream, and back. In place of `Relay`.

What the stream does not take waits where the kernel keeps it, up to the socket's buffer, and is dropped there as
datagrams are: nothing piles up here but what one read took. A datagram that its socket does not take is lost. The
stream's end is the session's.
"""

from __future__ import annotations

import select
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING

from enclavekit_core.errors import RemoteProtocolError

from enclavekit_pf_proxy.limits import Limits
from enclavekit_pf_proxy.relay import ENDING
from enclavekit_pf_proxy.sockets import close_socket
from enclavekit_pf_proxy.wire.datagrams import DatagramDecoder, encode_datagram, encode_length

if TYPE_CHECKING:
    from enclavekit_pf_proxy.loop import Loop
    from enclavekit_pf_proxy.passage import CheckDatagram
    from enclavekit_pf_proxy.relay import Owner

READABLE = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET
BOTH = READABLE | select.EPOLLOUT
DRAINING_S = 1.0  # a session that is quiet for so long ends when the proxy is to

STREAM_READ_BYTES = 64 * 1024
BATCH, BATCH_BYTES = 32, 64 * 1024  # datagrams of one write, and after how many bytes it is enough: held at worst
MAX_ROUNDS = 4  # batches or reads of one direction before others get their turn


@dataclass(slots=True)
class Count:
    """One direction."""

    total: int = 0
    """Bytes taken from its source, lengths included where that is the stream."""


class DatagramRelay:
    """A task of the loop. Owns two connected, non-blocking sockets, one a stream, and closes them."""

    __slots__ = ("_datagrams", "_decoder", "_draining", "_first", "_held", "_limits", "_loop", "_owner", "_pending",
                 "_stream", "_stream_ending", "_stream_side", "_writable", "check", "closed", "dropped", "flows",
                 "last_activity", "sockets")  # fmt: skip

    def __init__(
        self,
        client: socket.socket,
        upstream: socket.socket,
        loop: Loop,
        limits: Limits,
        owner: Owner,
        held: tuple[bytes, bytes],
    ) -> None:
        """As `Relay`. `held`: bytes of the stream that come first, framed, towards upstream and client."""
        self.sockets = (client, upstream)
        self._stream_side = 0 if client.type == socket.SOCK_STREAM else 1
        self._stream, self._datagrams = self.sockets[self._stream_side], self.sockets[1 - self._stream_side]
        self._loop, self._limits, self._owner = loop, limits, owner
        self._decoder = DatagramDecoder()
        self._pending = 0b11  # the sides to read, as bits
        self._writable = False  # whether the stream is watched for room
        self._stream_ending = False  # whether an end was announced: a short read may not be the last
        self._draining = False
        self.last_activity = 0.0
        """When bytes moved last, in the loop's clock."""
        self.closed = False
        self.check: CheckDatagram | None = None
        """Says which of the client's datagrams may go on."""
        self.dropped = 0
        """Datagrams that were lost here: too long, or not taken."""
        self.flows = (Count(), Count())
        self._held = held[1 - self._stream_side]
        """Framed, and not sent yet."""
        self._first = held[self._stream_side]
        """Of the stream, and not delivered yet."""

    def start(self, now: float) -> None:
        """Begin: the sockets' events are the relay's from now on."""
        self.last_activity = now
        self._deliver(self._first)
        self._first = b""
        if self.closed:
            return
        for side in (0, 1):
            self._loop.watch(self.sockets[side].fileno(), self, side, READABLE)
        self._plan_idle()
        self._loop.enqueue(self)

    def inject(self, datagram: bytes, max_bytes: int) -> None:
        """Send a datagram that came in elsewhere; lost if `max_bytes` wait already."""
        if self.closed:
            return
        allowed = (datagram,) if self.check is None else self.check(datagram)
        if allowed is None:
            self.close(reset=False)
            return
        framed = b"".join(map(encode_datagram, allowed))
        if not self._held:
            self._write([framed])
        elif len(self._held) + len(framed) <= max_bytes:
            self._held += framed  # behind those before it
        else:
            self.dropped += len(allowed)

    def drain(self) -> None:
        """End as soon as nothing has moved for a moment."""
        self._draining = True
        self._plan_idle()

    # the loop's side

    def notice(self, side: int, mask: int) -> None:
        """Take epoll's word about one side."""
        if mask & (select.EPOLLIN | ENDING):
            self._pending |= 1 << side
            if mask & ENDING and side == self._stream_side:
                self._stream_ending = True
        if mask & select.EPOLLOUT and side == self._stream_side:
            self._pending |= 2 >> side

    def run(self, now: float) -> bool:
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

    def expire(self, now: float) -> float | None:
        idle_s = self._idle_s()
        if not idle_s:
            return None
        due = self.last_activity + idle_s
        if now < due:
            return due
        self._owner.relay_expired(idle_s)
        self.close(reset=False)
        return None

    def close(self, *, reset: bool) -> None:
        """Close everything. `reset` tells a TCP peer that this is no regular end."""
        if self.closed:
            return
        self.closed = True
        self._loop.drop(self)
        for sock in self.sockets:
            self._loop.release(sock.fileno())
        close_socket(self._stream, reset=reset)
        self._datagrams.close()
        self._owner.relay_ended()

    def _idle_s(self) -> float:
        return DRAINING_S if self._draining else self._limits.udp_idle_timeout_s

    def _plan_idle(self) -> None:
        if (idle_s := self._idle_s()) and not self.closed:
            self._loop.timers.set(self, self.last_activity + idle_s)

    # both directions

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
                self.close(reset=False)
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
                if len(datagram) > self._limits.max_datagram_bytes:
                    raise OSError
                self._datagrams.send(datagram)
            except OSError:
                # no room, longer than the path takes, or an ICMP message about an earlier one, which is read away
                # so that the next one goes
                self.dropped += 1

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
        enough = flow.total + BATCH_BYTES
        for _ in range(BATCH):
            if flow.total >= enough:
                break
            try:
                datagram = self._datagrams.recv(self._limits.max_datagram_bytes + 1)
            except BlockingIOError:
                return pieces, False
            except OSError:
                continue  # an ICMP message: the client waits in vain, as it would without us
            if len(datagram) > self._limits.max_datagram_bytes:
                self.dropped += 1
                continue
            flow.total += len(datagram)
            if self.check is None:
                pieces += (encode_length(len(datagram)), datagram)
                continue
            allowed = self.check(datagram)
            if allowed is None:
                self.close(reset=False)
                return [], False
            for one in allowed:
                pieces += (encode_length(len(one)), one)
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
            self.close(reset=False)
            return
        self._held = b"" if sent == sum(map(len, pieces)) else b"".join(pieces)[sent:]
        if self._held:
            self._want_write()

    def _want_write(self) -> None:
        """Have EPOLLOUT reported: from now on each time that the stream has room again."""
        if not self._writable:
            self._writable = True
            self._loop.watch(self._stream.fileno(), self, self._stream_side, BOTH)
