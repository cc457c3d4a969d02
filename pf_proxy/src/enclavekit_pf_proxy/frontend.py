# SPDX-License-Identifier: Apache-2.0
"""Accepts: within the limits of its service, in turns with everybody else, without a spin when there is no room."""

from __future__ import annotations

import errno
import ipaddress
import select
import socket
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from enclavekit_core.address import TcpAddress
from enclavekit_core.errors import EnclavekitError, describe_cause
from enclavekit_core.logs import get_logger
from enclavekit_core.peers import Peer
from enclavekit_core.streams import Listener

from enclavekit_pf_proxy.connection import Connection
from enclavekit_pf_proxy.listeners import describe_listener
from enclavekit_pf_proxy.service import Service
from enclavekit_pf_proxy.sockets import close_socket, prepare_socket, spare_pacing

if TYPE_CHECKING:
    from enclavekit_pf_proxy.server import Server

ACCEPT_PAUSE_S = 0.25  # after accept(2) failed, mostly for want of descriptors or memory: not a busy loop
MAX_ACCEPTS = 64  # per round, then others get their turn
GONE = {errno.ECONNABORTED, errno.ENOTCONN, errno.ECONNRESET, errno.EPROTO}  # the client left before we looked


@dataclass(slots=True)
class Totals:
    """What happened since the start."""

    accepted: int = 0
    refused: int = 0
    """Not allowed, or no upstream."""
    dropped: int = 0
    """Datagrams that were lost here."""
    bytes_up: int = 0
    bytes_down: int = 0


def sum_totals(parts: Iterable[Totals]) -> Totals:
    found = Totals()
    for part in parts:
        found.accepted += part.accepted
        found.refused += part.refused
        found.dropped += part.dropped
        found.bytes_up += part.bytes_up
        found.bytes_down += part.bytes_down
    return found


@dataclass(slots=True)
class Occupancy:
    """Who has connections to one service, all its ports together."""

    connections: set[Connection] = field(default_factory=set)
    per_cid: dict[int, int] = field(default_factory=dict)
    frontends: list[Frontend] = field(default_factory=list)


class Frontend:
    """One listening socket of one service. A task of the loop."""

    def __init__(self, server: Server, service: Service, listener: Listener, offset: int, occupancy: Occupancy) -> None:
        """`offset`: which port of the service's range it is. Takes over the listener."""
        self.server, self.service, self.listener, self.offset = server, service, listener, offset
        self.totals = Totals()
        self.address = listener.bound_address
        self.port = getattr(self.address, "port", 0)
        upstream = str(service.upstream) if service.upstream is not None else "as asked"
        self.listen = describe_listener(listener)
        """The address, for people and logs."""
        self.log = get_logger("pf-proxy").bind(listen=self.listen, upstream=upstream)
        if service.name:
            self.log = self.log.bind(service=service.name)
        self._occupancy = occupancy
        occupancy.frontends.append(self)
        self._max_connections = service.limits.max_connections
        self._fd = listener.socket.fileno()
        self._accepting = False
        self._paused_until = 0.0
        self._closed = False
        prepare_socket(listener.socket, service.limits.keepalive_s)  # what is accepted inherits TCP's options
        if isinstance(listener, Listener) and isinstance(self.address, TcpAddress):
            host = str(listener.socket.getsockname()[0])
            if ipaddress.ip_address(host.partition("%")[0]).is_loopback:
                spare_pacing(listener.socket)
        self.update()

    @property
    def has_room(self) -> bool:
        return len(self._occupancy.connections) < self._max_connections

    def notice(self, index: int, mask: int) -> None:
        pass  # `run` follows

    def run(self, now: float) -> bool:
        if self._accepting:
            self._accept(now)
        self.update()
        return False  # level-triggered: what is left comes up again

    def expire(self, now: float) -> float | None:
        if now < self._paused_until:
            return self._paused_until
        self._paused_until = 0.0
        self.update()
        return None

    def update(self) -> None:
        """Look for connections if there is room for one."""
        wanted = self.has_room and not self._closed and not self._paused_until
        if wanted and not self._accepting:
            # exclusive: workers share sockets that SO_REUSEPORT does not know, and one is enough to wake
            self.server.loop.watch(self._fd, self, 0, select.EPOLLIN | select.EPOLLEXCLUSIVE)
        elif self._accepting and not wanted:
            self.server.loop.forget(self._fd)
        self._accepting = wanted

    def stop(self) -> None:
        """Accept nothing any more."""
        if not self._closed:
            self._closed = True
            self.update()
            self.server.loop.drop(self)
            self.listener.close()

    def refused(self) -> None:
        """One of its connections will be closed before it is relayed."""
        self.totals.refused += 1

    def ended(self, connection: Connection) -> None:
        """One of its connections has closed."""
        bytes_up, bytes_down = connection.carried
        self.totals.bytes_up += bytes_up
        self.totals.bytes_down += bytes_down
        self.totals.dropped += connection.dropped
        full = len(self._occupancy.connections) >= self._max_connections
        self._occupancy.connections.discard(connection)
        cid = connection.peer.cid
        if cid is not None:
            self._occupancy.per_cid[cid] -= 1
            if not self._occupancy.per_cid[cid]:
                del self._occupancy.per_cid[cid]
        if full:
            for frontend in self._occupancy.frontends:
                frontend.update()
        self.log.debug("closed", conn=f"{connection.number:016x}", bytes_up=bytes_up, bytes_down=bytes_down)

    def _accept(self, now: float) -> None:
        for _ in range(min(MAX_ACCEPTS, self._max_connections - len(self._occupancy.connections))):
            try:
                client, peer = self.listener.accept()
            except BlockingIOError:
                return
            except (OSError, EnclavekitError) as exc:
                if isinstance(exc, OSError) and exc.errno in GONE:
                    continue
                self.log.warning("cannot accept", cause=describe_cause(exc), pause_s=ACCEPT_PAUSE_S)
                self._paused_until = time.monotonic() + ACCEPT_PAUSE_S
                self.server.loop.timers.set(self, self._paused_until)
                return
            self._admit(client, peer, now)

    def _admit(self, client: socket.socket, peer: Peer, now: float) -> None:
        self.totals.accepted += 1
        allowed, limit = self.service.allowed_cids, self.service.limits.max_per_cid
        if allowed is not None and peer.cid not in allowed:
            self._turn_away(client, peer, "its CID is not allowed")
            return
        if peer.cid is not None:
            count = self._occupancy.per_cid.get(peer.cid, 0)
            if limit and count >= limit:
                self._turn_away(client, peer, f"its CID has {count} connections")
                return
            self._occupancy.per_cid[peer.cid] = count + 1
        connection = Connection(self, client, peer, self.server.next_number(), now)
        self._occupancy.connections.add(connection)
        connection.start(now)

    def _turn_away(self, client: socket.socket, peer: Peer, cause: str) -> None:
        self.log.warning("refused", peer=peer.text, cause=cause)
        self.totals.refused += 1
        close_socket(client, reset=True)
