# SPDX-License-Identifier: Apache-2.0
"""One accepted connection until it is relayed: does what `Handshake` says, with real sockets."""

from __future__ import annotations

import select
import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from enclavekit_core.address import Address
from enclavekit_core.errors import EnclavekitError, TransportError, describe_cause
from enclavekit_core.peers import Peer

from enclavekit_pf_proxy.handshake import (
    Ask,
    BeginRelay,
    Decide,
    Dial,
    Handshake,
    Locate,
    Phase,
    Read,
    Redial,
    Refuse,
    Step,
)
from enclavekit_pf_proxy.relay import Relay
from enclavekit_pf_proxy.sockets import close_socket
from enclavekit_pf_proxy.target import find_target
from enclavekit_pf_proxy.upstream import Upstream
from enclavekit_pf_proxy.wire.datagrams import encode_datagram
from enclavekit_pf_proxy.wire.opening import Opening
from enclavekit_pf_proxy.wire.request import Protocol, Status, encode_reply

if TYPE_CHECKING:
    from enclavekit_pf_proxy.frontend import Frontend
    from enclavekit_pf_proxy.passage import CheckBytes, CheckDatagram
    from enclavekit_pf_proxy.udp.relay import DatagramRelay

READABLE = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET
OPENING_READ_BYTES = 4096
CLIENT = 0  # the upstream's index is its own


class Connection:
    """A task of the loop until its relay is one. Owns the client's socket, and its upstream."""

    __slots__ = ("_check", "_deadline", "_handshake", "_loop", "_server", "_upstream", "client", "frontend", "number",
                 "peer", "phase", "relay", "service", "since", "target")  # fmt: skip

    def __init__(
        self, frontend: Frontend, client: socket.socket, peer: Peer, number: int, now: float, first: bytes = b""
    ) -> None:
        """`number`: the connection's id in logs. `first`: what was read from the client already, as its upstream's
        stream has it.
        """
        self.frontend, self.client, self.peer, self.number = frontend, client, peer, number
        self.service, self._server = frontend.service, frontend.server
        self._loop = self._server.loop
        self._handshake: Handshake | None = Handshake(self.service, number, first)
        self.phase = Phase.OPENING
        self._upstream: Upstream | None = None  # until its socket is the relay's
        self.relay: Relay | DatagramRelay | None = None
        self._deadline = 0.0
        self._check: CheckBytes | CheckDatagram | None = None  # of what comes later, for its relay
        self.since = now
        """When it was accepted."""
        self.target: Address | None = None
        """What is connected to; None while it is not known."""

    @property
    def carried(self) -> tuple[int, int]:
        """Bytes to the upstream and to the client so far."""
        return (0, 0) if self.relay is None else (self.relay.flows[0].total, self.relay.flows[1].total)

    @property
    def dropped(self) -> int:
        """Datagrams that were lost here."""
        return 0 if self.relay is None or isinstance(self.relay, Relay) else self.relay.dropped

    @property
    def quiet_since(self) -> float | None:
        """When bytes moved last; None if nothing was relayed yet."""
        return None if self.relay is None else self.relay.last_activity

    def inject(self, datagram: bytes, max_bytes: int) -> None:
        """Take a datagram of this session that came in elsewhere; lost if there is no room."""
        if self.phase is Phase.INSPECTING:
            assert self._handshake is not None
            self._go_on(self._handshake.client_sent(encode_datagram(datagram)), self._server.now())
        elif self._handshake is not None:
            for allowed in self._allowed_of(datagram):
                if not self._handshake.append(encode_datagram(allowed), max_bytes):
                    self.frontend.totals.dropped += 1
        elif self.relay is not None and not isinstance(self.relay, Relay):
            self.relay.inject(datagram, max_bytes)

    def _allowed_of(self, datagram: bytes) -> Sequence[bytes]:
        """Return which datagrams may go on now that this one has come, while there is no relay to ask."""
        if self._check is None:
            return (datagram,)
        allowed = cast("CheckDatagram", self._check)(datagram)
        if allowed is None:
            self.refuse("a datagram shows another name", Status.DENIED, logged=True)
            return ()
        return allowed

    def drain(self) -> None:
        """The proxy is to end: a session of datagrams, which has no end of its own, does once it is quiet."""
        if self.relay is not None and not isinstance(self.relay, Relay):
            self.relay.drain()

    def start(self, now: float) -> None:
        """Go as far as it goes without waiting."""
        self.client.setblocking(False)  # the rest it has from its listener
        assert self._handshake is not None
        self._go_on(self._handshake.begin(), now)

    # the loop's side

    def notice(self, index: int, mask: int) -> None:
        pass  # `run` follows

    def run(self, now: float) -> bool:
        if self.phase is Phase.OPENING or self.phase is Phase.INSPECTING:
            self._read_client(now)
        elif self._handshake is not None and self._upstream is not None:
            if self.phase is Phase.DIALLING:
                self._go_on(self._upstream.finish(self._handshake), now)
            elif self.phase is Phase.ASKING:
                self._go_on(self._upstream.read_reply(self._handshake), now)
        return False

    def expire(self, now: float) -> float | None:
        if now < self._deadline:
            return self._deadline
        if self._handshake is not None:
            self._go_on(self._handshake.expired(), now)
        return None

    # steps

    def _go_on(self, step: Step | None, now: float) -> None:
        """Take steps until one has to wait."""
        while step is not None:
            handshake = self._handshake
            assert handshake is not None
            was_reading = self.phase is Phase.INSPECTING or self.phase is Phase.OPENING
            self.phase = handshake.phase
            match step:
                case Dial():
                    self._upstream = Upstream(self, self.client, self._server, self.service)
                    step = self._upstream.dial(handshake)
                case BeginRelay():
                    self._begin_relay(step, now)
                    return
                case Locate():
                    step = self._locate(handshake, step.opening)
                case Read():
                    self._loop.watch(self.client.fileno(), self, CLIENT, READABLE)
                    self._set_deadline(now + step.timeout_s)
                    return
                case Decide():
                    step = self._decide(handshake, step)
                case Ask():
                    assert self._upstream is not None
                    step = self._upstream.ask(step, handshake)
                case Redial():
                    assert self._upstream is not None
                    step = self._upstream.redial(handshake)
                case Refuse():
                    self.refuse(step.cause, step.status, logged=step.logged)
                    return
            if was_reading and not handshake.reads_client:
                # not watched until the relay can take its bytes: the kernel holds them back
                self._loop.forget(self.client.fileno())
            if step is None:
                assert self._upstream is not None
                self._set_deadline(now + self._upstream.patience_s)

    def _locate(self, handshake: Handshake, opening: Opening) -> Step:
        self.number = handshake.number
        try:
            port, offset = self.frontend.port, self.frontend.offset
            target, destination = find_target(self.service, self.client, port, offset, opening)
        except (OSError, EnclavekitError) as exc:
            return handshake.not_located(describe_cause(exc))
        self.target = target
        # not before: a header may have said which number the connection has at the other end
        self.frontend.log.debug("accepted", conn=f"{self.number:016x}", peer=self.peer.text, target=str(target))
        return handshake.located(target, destination)

    def _decide(self, handshake: Handshake, step: Decide) -> Step:
        gate = self.service.gate
        assert gate is not None and handshake.destination is not None
        protocol = handshake.protocol.value
        decision = gate.decide(handshake.destination, step.shown, self.number, protocol)
        if decision.is_allowed and handshake.first is not None:
            self._check = gate.follow(handshake.destination, handshake.first, decision, self.number, protocol)
        return handshake.decided(decision, gate.begin_inspection(protocol) if decision.needs_bytes else None)

    def _read_client(self, now: float) -> None:
        handshake = self._handshake
        assert handshake is not None
        step = None
        while step is None:
            try:
                step = handshake.client_sent(self._receive(handshake))
            except BlockingIOError:
                return
            except OSError as exc:
                step = handshake.client_failed(describe_cause(exc))
        self._go_on(step, now)

    def _receive(self, handshake: Handshake) -> bytes:
        """Return bytes of the client's stream, or one of its datagrams as a stream has it. Raises OSError."""
        if handshake.protocol is Protocol.TCP or self.phase is Phase.OPENING:
            return self.client.recv(OPENING_READ_BYTES)
        limit = self.service.limits.max_datagram_bytes
        while len(datagram := self.client.recv(limit + 1)) > limit:
            self.frontend.totals.dropped += 1
        return encode_datagram(datagram)

    # upstream

    def dialled(self, sock: socket.socket | None, error: TransportError | None) -> None:
        """The thread's attempt has ended."""
        if self.phase is not Phase.DIALLING or self._handshake is None or self._upstream is None:
            if sock is not None:
                sock.close()
            return
        self._go_on(self._upstream.take(sock, error, self._handshake), self._server.now())

    # ends

    def _begin_relay(self, step: BeginRelay, now: float) -> None:
        assert self._upstream is not None
        upstream, self._upstream = self._upstream.release(), None
        self._loop.timers.drop(self)
        held = (step.to_upstream, step.to_client)
        assert self._handshake is not None
        protocol = self._handshake.protocol
        self._handshake = None  # thousands of idle connections need none
        shared, limits = self._server.shared, self.service.limits
        if protocol is Protocol.UDP:
            from enclavekit_pf_proxy.udp.relay import DatagramRelay

            self.relay = DatagramRelay(self.client, upstream, self._loop, limits, self, held)
            self.relay.check = cast("CheckDatagram | None", self._check)
            if self._server.is_stopping:
                self.relay.drain()
        else:
            self.relay = Relay(self.client, upstream, self._loop, shared, limits, self, held)
            self.relay.flows[0].check = cast("CheckBytes | None", self._check)
        self._check = None
        self.relay.flows[0].total = step.from_client
        self.relay.start(now)

    def relay_expired(self, idle_s: float) -> None:
        """Its relay has been idle for too long and is closed."""
        self.frontend.log.info("closed", conn=f"{self.number:016x}", cause="idle", idle_s=round(idle_s, 1))

    def relay_ended(self) -> None:
        """Its relay has closed."""
        self._ended()

    def refuse(self, cause: str, status: Status, *, logged: bool = False) -> None:
        """Close before anything was relayed; tell the client as far as it can be told. `logged`: the log has it."""
        where = {} if self.target is None else {"upstream": str(self.target)}
        write = self.frontend.log.debug if logged else self.frontend.log.warning
        write("refused", conn=f"{self.number:016x}", peer=self.peer.text, cause=cause, **where)
        self.frontend.refused()
        told = False
        if self._handshake is not None and self._handshake.wants_reply:
            try:
                told = self.client.send(encode_reply(status)) > 0
            except OSError:
                pass  # it has left
        self.close(reset=not told)

    def close(self, *, reset: bool) -> None:
        """Close both ends, whatever the phase."""
        if self.phase is Phase.CLOSED:
            return
        if self.relay is not None:
            self.relay.close(reset=reset)  # which tells us
            return
        self._loop.release(self.client.fileno())
        close_socket(self.client, reset=reset)
        if self._upstream is not None:
            self._upstream.close(reset=reset)
        self._ended()

    def _ended(self) -> None:
        self.phase, self._handshake = Phase.CLOSED, None
        self._loop.drop(self)
        self.frontend.ended(self)

    def _set_deadline(self, deadline: float) -> None:
        self._deadline = deadline
        self._loop.timers.set(self, deadline)
