# SPDX-License-Identifier: Apache-2.0
"""Tells sessions apart: the first datagram of a client to a destination begins one, and limits say how many there are.

There is no backlog in which a client could wait: at the limit the session that was silent for longest gives way, if it
was silent for long enough, or else the datagram is lost, as datagrams may be.
"""

from __future__ import annotations

import errno
import socket
from collections import Counter, OrderedDict, deque
from typing import TYPE_CHECKING

from enclavekit_core.address import TcpAddress
from enclavekit_core.errors import describe_cause
from enclavekit_core.peers import Peer

from enclavekit_pf_proxy.connection import Connection
from enclavekit_pf_proxy.frontend import ACCEPT_PAUSE_S, Frontend, Occupancy
from enclavekit_pf_proxy.service import Service
from enclavekit_pf_proxy.udp.listener import Arrival, DatagramListener
from enclavekit_pf_proxy.wire.datagrams import encode_datagram

if TYPE_CHECKING:
    from enclavekit_pf_proxy.server import Server

MAX_PER_ROUND = 64  # datagrams, then others get their turn
EVICTABLE_S = 5.0  # a session that was silent for so long gives way to a new one
REFUSED_S = 1.0  # further datagrams of a session that was refused are dropped for so long: no new attempt for each
MAX_REFUSED = 1024
MAX_WAITING_BYTES = 64 * 1024  # of a session whose upstream is not there yet; the kernel's buffer comes on top
EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}

Key = tuple[TcpAddress, TcpAddress]
"""Client and destination."""


class DatagramFrontend(Frontend):
    """One UDP socket of one service. A task of the loop."""

    listener: DatagramListener  # type: ignore[assignment]  # in place of a stream's

    def __init__(
        self, server: Server, service: Service, listener: DatagramListener, offset: int, occupancy: Occupancy
    ) -> None:
        self._sessions: dict[Key, Connection] = {}
        self._keys: dict[Connection, Key] = {}
        self._per_source: Counter[str] = Counter()
        self._refused: OrderedDict[Key, float] = OrderedDict()
        self._strays: deque[Arrival] = deque()
        """What came to a session's socket before it was connected; later than what waits in the listener's."""
        self._crowded: dict[str, float] = {}  # host, or "" for all -> when a session may be quiet for long enough
        super().__init__(server, service, listener, offset, occupancy)  # type: ignore[arg-type]  # as above

    @property
    def has_room(self) -> bool:
        return True  # what is not read goes stale in the socket: better lost

    def _accept(self, now: float) -> None:
        for _ in range(MAX_PER_ROUND):
            try:
                arrival = self.listener.receive()
            except BlockingIOError:
                break
            except OSError:
                continue
            if arrival is not None and not self._paused_until:
                self._take(arrival, now)
        while self._strays:
            self._take(self._strays.popleft(), now)

    def _take(self, arrival: Arrival, now: float) -> None:
        if len(arrival.data) > self.service.limits.max_datagram_bytes:
            self.totals.dropped += 1
            return
        key = (arrival.client, arrival.destination)
        session = self._sessions.get(key)
        if session is not None:
            # it came in before the session had its socket
            session.inject(arrival.data, MAX_WAITING_BYTES)
        elif self._refused.get(key, 0.0) > now or not self._make_room(arrival.client.host, now):
            self.totals.dropped += 1
        else:
            self._begin(key, arrival, now)

    def _make_room(self, host: str, now: float) -> bool:
        """Return whether one more session of `host` may begin."""
        limits = self.service.limits
        if limits.max_per_source and self._per_source[host] >= limits.max_per_source:
            return self._evict(now, host)
        if len(self._occupancy.connections) >= self._max_connections:
            return self._evict(now)
        return True

    def _evict(self, now: float, host: str = "") -> bool:
        """End the session that was silent for longest, one of `host` if it is given; return whether there was one."""
        if self._crowded.get(host, 0.0) > now:
            return False
        found, quiet_since = None, now
        for key, session in self._sessions.items():
            since = session.quiet_since
            if (not host or key[0].host == host) and since is not None and since < quiet_since:
                found, quiet_since = session, since
        if found is None or quiet_since > now - EVICTABLE_S:
            self._crowded[host] = quiet_since + EVICTABLE_S
            return False
        found.close(reset=False)
        return True

    def _begin(self, key: Key, arrival: Arrival, now: float) -> None:
        try:
            sock, others = self.listener.open_session(*key)
        except OSError as exc:
            self.totals.dropped += 1
            self._note_refused(key, now)
            self.log.warning("cannot begin session", peer=str(key[0]), to=str(key[1]), cause=describe_cause(exc))
            if exc.errno in EXHAUSTED:
                self._paused_until = now + ACCEPT_PAUSE_S
                self.server.loop.timers.set(self, self._paused_until)
                self.update()
            return
        self._limit_buffer(sock)
        self.totals.accepted += 1
        peer = Peer(None, f"udp://{key[0].host}:{key[0].port}")
        first = encode_datagram(arrival.data)
        session = Connection(self, sock, peer, self.server.next_number(), now, first)
        self._sessions[key], self._keys[session] = session, key
        self._per_source[key[0].host] += 1
        self._occupancy.connections.add(session)
        session.start(now)
        self._strays += others

    def _limit_buffer(self, sock: socket.socket) -> None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self.service.limits.max_queued_bytes)

    def _note_refused(self, key: Key, now: float) -> None:
        self._refused[key] = now + REFUSED_S
        self._refused.move_to_end(key)
        while len(self._refused) > MAX_REFUSED:
            self._refused.popitem(last=False)

    def ended(self, connection: Connection) -> None:
        key = self._keys.pop(connection)
        del self._sessions[key]
        self._per_source[key[0].host] -= 1
        if not self._per_source[key[0].host]:
            del self._per_source[key[0].host]
            self._crowded.pop(key[0].host, None)
        if connection.quiet_since is None:  # nothing was ever relayed
            self._note_refused(key, self.server.now())
        super().ended(connection)
