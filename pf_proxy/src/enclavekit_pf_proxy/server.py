# SPDX-License-Identifier: Apache-2.0
"""All listeners of one process on one loop: starts them, ends them, drains their connections."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import chain

from enclavekit_core.address import Address, TcpAddress, VsockAddress
from enclavekit_core.logs import get_logger
from enclavekit_core.streams import Listener

from enclavekit_pf_proxy.connection import Connection
from enclavekit_pf_proxy.dialer import Dialer
from enclavekit_pf_proxy.flow import Shared
from enclavekit_pf_proxy.frontend import Frontend, Occupancy, Totals, sum_totals
from enclavekit_pf_proxy.limits import Limits
from enclavekit_pf_proxy.listeners import AnyListener
from enclavekit_pf_proxy.loop import Loop
from enclavekit_pf_proxy.service import Endpoint, Header, Mode, Service

V1_MEMORY_S = (
    60.0  # how long an upstream counts as one of the Rust framework before the versioned header is tried again
)
MAX_U64 = 2**64 - 1

Opened = tuple[Service, Sequence[tuple[int, AnyListener]]]
"""A service with its listening sockets and which port of its range each has."""


class Server:
    """Relays every connection to its listeners. `run` in one thread; `stop` from any."""

    def __init__(
        self, opened: Sequence[Opened], drain_timeout_s: float = Limits().drain_timeout_s, *, mark: int = 0
    ) -> None:
        """Takes over the listeners. `mark`: SO_MARK of connections over IP, so that no rule diverts them."""
        self.loop = Loop()
        self.shared = Shared()
        self.dialer = Dialer(self.loop.wake, mark)
        self.loop.on_wake.append(self.dialer.deliver)
        self._drain_timeout_s = drain_timeout_s
        self._numbers = secrets.randbits(64)
        self._speak_v1: dict[Address, float] = {}
        self._stops = 0
        self._retired = False
        self._listening = True
        self._drain_until: float | None = None
        self.started = time.monotonic()
        self.frontends: list[Frontend] = []
        """One for each listening socket."""
        self._occupancies: list[Occupancy] = []
        self.when_stopping: list[Callable[[], None]] = []
        """Called when nothing is accepted any more, and at the end."""
        self.when_closing: list[Callable[[], None]] = []
        """Called once all connections are closed."""
        self.log = get_logger("pf-proxy")
        for service, listeners in opened:
            occupancy = Occupancy()
            self._occupancies.append(occupancy)
            for offset, listener in listeners:
                self.frontends.append(_frontend_of(listener)(self, service, listener, offset, occupancy))

    @property
    def addresses(self) -> list[Address]:
        """Where it listens."""
        return [frontend.address for frontend in self.frontends]

    @property
    def totals(self) -> Totals:
        """What happened since the start, on all listeners."""
        return sum_totals(frontend.totals for frontend in self.frontends)

    @property
    def accepts(self) -> bool:
        """Whether it takes connections still."""
        return self._listening and not self._stops and not self._retired

    def connections(self) -> Iterator[Connection]:
        """Return those that are live."""
        return chain.from_iterable(occupancy.connections for occupancy in self._occupancies)

    def stop(self) -> None:
        """Stop accepting and end when the relays have, or after the drain timeout; called again, end at once.

        Safe in signal handlers and other threads.
        """
        self._stops += 1
        self.loop.wake()

    def retire(self) -> None:
        """Stop accepting and end when the relays have, however long they go on: another process has taken over."""
        self._retired = True
        self.loop.wake()

    def run(self) -> None:
        """Serve until stopped; closes everything, the listeners included."""
        try:
            while not self._finished():
                self.loop.run_round(self._drain_until)
        finally:
            self._close()

    # for connections

    @property
    def is_stopping(self) -> bool:
        """Whether it is to end soon, and not only when its connections have."""
        return self._stops > 0

    def now(self) -> float:
        return time.monotonic()

    def next_number(self) -> int:
        self._numbers = (self._numbers + 1) & MAX_U64
        return self._numbers

    def header_for(self, upstream: Address, wanted: Header) -> Header:
        """Return which header to send first."""
        if wanted is not Header.AUTO:
            return wanted
        return Header.V1 if self._speak_v1.get(upstream, 0.0) > time.monotonic() else Header.V2

    def remember_v1(self, upstream: Address) -> None:
        self._speak_v1[upstream] = time.monotonic() + V1_MEMORY_S

    # ends

    def _finished(self) -> bool:
        if not self._stops and not self._retired:
            return False
        if self._listening:
            self._listening = False
            self._stop_accepting()
            self.log.info("stopping", connections=self._count())
        now = time.monotonic()
        if self._stops and self._drain_until is None:
            self._drain_until = now + self._drain_timeout_s
            for occupancy in self._occupancies:
                for connection in list(occupancy.connections):
                    connection.drain()
        overdue = self._drain_until is not None and now >= self._drain_until
        return self._count() == 0 or self._stops > 1 or overdue

    def _count(self) -> int:
        return sum(len(occupancy.connections) for occupancy in self._occupancies)

    def _stop_accepting(self) -> None:
        for frontend in self.frontends:
            frontend.stop()
        for call in self.when_stopping:
            call()

    def _close(self) -> None:
        self._stop_accepting()
        for occupancy in self._occupancies:
            for connection in list(occupancy.connections):
                connection.close(reset=True)
        for call in self.when_closing:
            call()
        self.dialer.close()
        self.shared.close()
        self.loop.close()
        totals = self.totals
        self.log.info(
            "stopped",
            accepted=totals.accepted,
            refused=totals.refused,
            dropped=totals.dropped,
            bytes_up=totals.bytes_up,
            bytes_down=totals.bytes_down,
        )


def _frontend_of(listener: AnyListener) -> Callable[..., Frontend]:
    if isinstance(listener, Listener):
        return Frontend
    from enclavekit_pf_proxy.udp.frontend import DatagramFrontend

    return DatagramFrontend


class ProxyServer(Server):
    """One listener, one upstream: `ip-to-vsock` or `vsock-to-ip`, after what the listener is."""

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
        self.address = listener.bound_address
        """Where it listens."""
        mode = Mode.VSOCK_TO_IP if isinstance(upstream, TcpAddress) else Mode.IP_TO_VSOCK
        service = Service(
            mode,
            Endpoint(listener.address),
            Endpoint(upstream),
            limits=self.limits,
            allowed_cids=allowed_cids if isinstance(listener.address, VsockAddress) else None,
        )
        super().__init__([(service, [(0, listener)])], self.limits.drain_timeout_s)
