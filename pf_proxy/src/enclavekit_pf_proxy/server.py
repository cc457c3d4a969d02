# SPDX-License-Identifier: Apache-2.0
"""The event loop: accepts, has upstreams dialled, pumps relays, ends idle ones, drains at the end.

One thread, edge-triggered epoll. Each relay that could go on is queued and gets one share per round, so that none
starves another. What cannot be taken on (connection limit, no descriptors) waits in the kernel's backlog.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import threading
import time
from collections.abc import Collection
from dataclasses import dataclass

from enclavekit_core.address import Address
from enclavekit_core.errors import EnclavekitError, describe_cause
from enclavekit_core.logs import get_logger
from enclavekit_core.peers import Peer
from enclavekit_core.streams import Listener

from enclavekit_pf_proxy.dialer import Dialer
from enclavekit_pf_proxy.limits import Limits
from enclavekit_pf_proxy.relay import Relay, close_socket

ACCEPT_PAUSE_S = 0.25  # after accept(2) failed, mostly for want of descriptors or memory: not a busy loop
MAX_ACCEPTS = 64  # per round, then the relays get their turn
MAX_EVENTS = 256
GONE = {errno.ECONNABORTED, errno.ENOTCONN, errno.ECONNRESET, errno.EPROTO}  # the client left before we looked
RELAY_EVENTS = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET
KEEPALIVE_IDLE_S = 60  # finds peers that vanished without a word, well before the idle timeout


@dataclass(slots=True)
class Totals:
    """What happened since the start."""

    accepted: int = 0
    refused: int = 0
    """Not allowed, or no upstream."""
    bytes_up: int = 0
    bytes_down: int = 0


@dataclass(slots=True)
class _Side:
    relay: Relay
    number: int
    """0 client, 1 upstream."""


class ProxyServer:
    """Relays every connection to `listener` to a new one to `upstream`. `run` in one thread; `stop` from any."""

    def __init__(
        self,
        listener: Listener,
        upstream: Address,
        limits: Limits | None = None,
        *,
        allowed_cids: Collection[int] | None = None,
    ) -> None:
        """`allowed_cids`: peers that may connect to a vsock listener; None means all. Takes over the listener."""
        self.limits = limits or Limits()
        self.totals = Totals()
        self.address = listener.bound_address
        """Where it listens."""
        self._listener = listener
        self._allowed_cids = allowed_cids
        self._log = get_logger("pf-proxy").bind(listen=str(self.address), upstream=str(upstream))
        self._epoll = select.epoll()
        self._wakeup = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._wakeup_lock = threading.RLock()  # re-entrant: a signal handler may call `stop` while we hold it
        self._closed = False
        self._null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        self._dialer = Dialer(upstream, self.limits.connect_timeout_s, self._wake)
        self._sides: dict[int, _Side] = {}
        self._relays: set[Relay] = set()
        self._ready: dict[Relay, None] = {}  # ordered: who waited longest goes first
        self._linger_until: dict[Relay, float] = {}
        self._accepting = False
        self._paused_until = 0.0
        self._next_idle_check = 0.0
        self._stops = 0
        self._drain_until: float | None = None
        listener.socket.setblocking(False)
        self._epoll.register(self._wakeup, select.EPOLLIN)

    def stop(self) -> None:
        """Stop accepting and end when the relays have, or after the drain timeout; called again, end at once.

        Safe in signal handlers and other threads.
        """
        self._stops += 1
        self._wake()

    def run(self) -> None:
        """Serve until stopped; closes everything, the listener included."""
        try:
            while not self._finished():
                self._update_accepting()
                events = self._epoll.poll(self._timeout_s(), MAX_EVENTS)
                self._dispatch(events)
                self._start_dialled()
                self._pump_ready()
                self._expire()
        finally:
            self._close()

    def _wake(self) -> None:
        with self._wakeup_lock:
            if not self._closed:
                os.eventfd_write(self._wakeup, 1)

    def _finished(self) -> bool:
        if not self._stops:
            return False
        now = time.monotonic()
        if self._drain_until is None:
            self._drain_until = now + self.limits.drain_timeout_s
            self._set_accepting(False)
            self._listener.close()
            self._log.info("stopping", connections=self._count())
        return self._count() == 0 or self._stops > 1 or now >= self._drain_until

    def _count(self) -> int:
        return len(self._relays) + len(self._dialer.pending)

    # accepting

    def _update_accepting(self) -> None:
        room = self._count() < self.limits.max_connections
        self._set_accepting(not self._stops and room and time.monotonic() >= self._paused_until)

    def _set_accepting(self, wanted: bool) -> None:
        if wanted and not self._accepting:
            self._epoll.register(self._listener.socket, select.EPOLLIN)
        elif self._accepting and not wanted:
            self._epoll.unregister(self._listener.socket)
        self._accepting = wanted

    def _accept(self) -> None:
        for _ in range(min(MAX_ACCEPTS, self.limits.max_connections - self._count())):
            try:
                client, peer = self._listener.accept()
            except BlockingIOError:
                return
            except (OSError, EnclavekitError) as exc:
                if isinstance(exc, OSError) and exc.errno in GONE:
                    continue
                self._log.warning("cannot accept", cause=describe_cause(exc), pause_s=ACCEPT_PAUSE_S)
                self._paused_until = time.monotonic() + ACCEPT_PAUSE_S
                return
            self._admit(client, peer)

    def _admit(self, client: socket.socket, peer: Peer) -> None:
        self.totals.accepted += 1
        if self._allowed_cids is not None and peer.cid not in self._allowed_cids:
            self._log.warning("refused", peer=peer.text, cause="its CID is not allowed")
            self._refuse(client)
            return
        try:
            self._dialer.start(client)
        except RuntimeError as exc:
            self._log.warning("refused", peer=peer.text, cause=str(exc))
            self._refuse(client)
            return
        self._log.debug("accepted", peer=peer.text)

    def _refuse(self, client: socket.socket) -> None:
        self.totals.refused += 1
        close_socket(client, reset=True)

    # relaying

    def _start_dialled(self) -> None:
        for result in self._dialer.take():
            if result.upstream is None:
                self._log.warning("refused", cause=str(result.error))
                self._refuse(result.client)
                continue
            try:
                relay = Relay(result.client, result.upstream, self._null, time.monotonic())
            except OSError as exc:
                self._log.warning("refused", cause=f"cannot make a pipe: {os.strerror(exc.errno or 0).lower()}")
                close_socket(result.upstream, reset=True)
                self._refuse(result.client)
                continue
            self._add(relay)

    def _add(self, relay: Relay) -> None:
        self._relays.add(relay)
        for number, sock in enumerate(relay.sockets):
            prepare_socket(sock)
            self._sides[sock.fileno()] = _Side(relay, number)
            self._epoll.register(sock, RELAY_EVENTS)
        self._ready[relay] = None

    def _dispatch(self, events: list[tuple[int, int]]) -> None:
        for descriptor, mask in events:
            side = self._sides.get(descriptor)
            if side is not None:
                self._ready[side.relay] = None
                if mask & select.EPOLLHUP:
                    side.relay.hang_up(side.number)
            elif descriptor == self._wakeup:
                os.eventfd_read(self._wakeup)
            else:
                self._accept()

    def _pump_ready(self) -> None:
        now = time.monotonic()
        for relay in list(self._ready):
            del self._ready[relay]
            if not relay.closed and relay.pump(now):
                self._ready[relay] = None
            if relay.closed:
                self._forget(relay)
            elif relay.lingering:
                self._linger_until.setdefault(relay, now + self.limits.linger_s)

    def _forget(self, relay: Relay) -> None:
        """Drop a closed relay; the kernel has taken its descriptors out of the epoll set."""
        for descriptor in relay.descriptors:
            if self._sides[descriptor].relay is relay:  # and not one that got the number since
                del self._sides[descriptor]
        self._relays.discard(relay)
        self._ready.pop(relay, None)
        self._linger_until.pop(relay, None)
        up, down = (flow.total for flow in relay.flows)
        self.totals.bytes_up += up
        self.totals.bytes_down += down
        self._log.debug("closed", bytes_up=up, bytes_down=down)

    # time

    def _timeout_s(self) -> float | None:
        """Return how long nothing needs to be done; None means until an event."""
        if self._ready:
            return 0.0
        now = time.monotonic()
        moments = list(self._linger_until.values())
        if self._paused_until > now:
            moments.append(self._paused_until)
        if self._drain_until is not None:
            moments.append(self._drain_until)
        if self._relays and self.limits.idle_timeout_s:
            moments.append(self._next_idle_check)
        return max(0.0, min(moments) - now) if moments else None

    def _expire(self) -> None:
        now = time.monotonic()
        for relay, until in list(self._linger_until.items()):
            if now >= until:
                self._end(relay, reset=False)
        if not self.limits.idle_timeout_s or now < self._next_idle_check:
            return
        oldest = now
        for relay in list(self._relays):
            if now - relay.last_activity >= self.limits.idle_timeout_s:
                self._log.info("closed", cause="idle", idle_s=round(now - relay.last_activity, 1))
                self._end(relay, reset=True)
            else:
                oldest = min(oldest, relay.last_activity)
        # activity only moves forward, so nobody can be due before this
        self._next_idle_check = oldest + self.limits.idle_timeout_s

    def _end(self, relay: Relay, *, reset: bool) -> None:
        relay.close(reset=reset)
        self._forget(relay)

    def _close(self) -> None:
        for relay in list(self._relays):
            self._end(relay, reset=True)
        unanswered = list(self._dialer.pending)
        self._dialer.close()
        for client in unanswered:
            close_socket(client, reset=True)
        self._listener.close()
        self._epoll.close()
        os.close(self._null)
        with self._wakeup_lock:
            self._closed = True
            os.close(self._wakeup)
        totals = self.totals
        self._log.info(
            "stopped",
            accepted=totals.accepted,
            refused=totals.refused,
            bytes_up=totals.bytes_up,
            bytes_down=totals.bytes_down,
        )


def prepare_socket(sock: socket.socket) -> None:
    """Make a socket ready to be relayed: non-blocking, and on TCP no delay for small writes, keep-alive."""
    sock.setblocking(False)
    if sock.family in (socket.AF_INET, socket.AF_INET6):
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE_S)
        except OSError:
            pass  # reset meanwhile: the relay notices at once
