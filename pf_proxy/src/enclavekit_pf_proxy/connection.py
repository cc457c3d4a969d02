# SPDX-License-Identifier: Apache-2.0
"""One accepted connection, from its first byte to its end: header, destination, upstream, answer, relay."""

from __future__ import annotations

import enum
import errno
import os
import select
import socket
from dataclasses import replace
from typing import TYPE_CHECKING

from enclavekit_core.address import Address, TcpAddress, VsockAddress
from enclavekit_core.errors import EnclavekitError, RemoteProtocolError, TransportError, describe_cause
from enclavekit_core.peers import Peer

from enclavekit_pf_proxy.announcement import encode_proxied, find_source
from enclavekit_pf_proxy.dialer import status_of
from enclavekit_pf_proxy.original_destination import is_own_address, plain_address, read_original
from enclavekit_pf_proxy.relay import Relay, close_socket, prepare_socket
from enclavekit_pf_proxy.service import Header, Mode
from enclavekit_pf_proxy.wire.destination import encode_destination
from enclavekit_pf_proxy.wire.opening import Opening, OpeningDecoder
from enclavekit_pf_proxy.wire.request import (
    REPLY,
    Protocol,
    Request,
    Status,
    decode_reply,
    encode_reply,
    encode_request,
)

if TYPE_CHECKING:
    from enclavekit_pf_proxy.frontend import Frontend
    from enclavekit_pf_proxy.policy.first_bytes import FirstBytes, Shown
    from enclavekit_pf_proxy.udp.relay import DatagramRelay

READABLE = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET
BOTH = READABLE | select.EPOLLOUT
OPENING_READ_BYTES = 4096
CLIENT, UPSTREAM = 0, 1
DRAINING_SESSION_S = 1.0  # a session of datagrams that is quiet for so long ends when the proxy is to


class Phase(enum.Enum):
    OPENING = "waiting for its header"
    INSPECTING = "waiting for its first bytes"
    DIALLING = "connecting to its upstream"
    ASKING = "waiting for the upstream's answer"
    RELAYING = "relaying"
    CLOSED = "closed"


class Connection:
    """A task of the loop. Owns the client's socket, and the upstream's from when it is there."""

    __slots__ = (
        "_deadline",
        "_decoder",
        "_destination",
        "_first",
        "_header",
        "_loop",
        "_opening",
        "_protocol",
        "_relay",
        "_reply",
        "_server",
        "_upstream",
        "_writable",
        "client",
        "frontend",
        "number",
        "peer",
        "phase",
        "service",
        "target",
    )

    def __init__(self, frontend: Frontend, client: socket.socket, peer: Peer, number: int) -> None:
        """`number`: the connection's id in logs."""
        self.frontend, self.client, self.peer, self.number = frontend, client, peer, number
        self.service, self._server = frontend.service, frontend.server
        self._loop = self._server.loop
        self.phase = Phase.OPENING
        self._opening = Opening()
        self._destination: TcpAddress | None = None
        self._decoder: OpeningDecoder | None = None
        self._first: FirstBytes | None = None
        self._header: Header | None = None
        self._upstream: socket.socket | None = None
        self._relay: Relay | DatagramRelay | None = None
        self._protocol = self.service.protocol
        self._reply = b""
        self._writable = 0  # sides watched for room, as bits
        self._deadline = 0.0
        self.target: Address | None = None
        """What is connected to; None while it is not known."""

    @property
    def quiet_since(self) -> float | None:
        """When bytes moved last; None if nothing was relayed yet."""
        return None if self._relay is None else self._relay.last_activity

    def start(self, now: float, first: bytes = b"") -> None:
        """Go as far as it goes without waiting. `first`: what was read from the client already, as its upstream's
        stream has it.
        """
        self.client.setblocking(False)  # the rest it has from its listener
        from_header = self.service.mode is Mode.VSOCK_TO_IP_TRANSPARENT
        if not (from_header or self.service.accept_proxy):
            self._open(Opening(rest=first), now)
            return
        self._decoder = OpeningDecoder(expects_proxied=self.service.accept_proxy, expects_destination=from_header)
        self._loop.watch(self.client.fileno(), self, CLIENT, READABLE)
        self._set_deadline(now + self.service.limits.header_timeout_s)

    def inject(self, framed: bytes, max_bytes: int) -> None:
        """Take a datagram of this session that came in elsewhere; lost if there is no room."""
        if self.phase is Phase.RELAYING:
            assert isinstance(self._relay, _datagram_relay())
            self._relay.inject(framed, max_bytes)
        elif self.phase is not Phase.CLOSED and len(self._opening.rest) + len(framed) <= max_bytes:
            self._opening = replace(self._opening, rest=self._opening.rest + framed)

    # the loop's side

    def notice(self, index: int, mask: int) -> None:
        if self._relay is not None:
            self._relay.notice(index, mask)

    def run(self, now: float) -> bool:
        match self.phase:
            case Phase.RELAYING:
                return self._pump(now)
            case Phase.OPENING:
                self._read_opening(now)
            case Phase.INSPECTING:
                self._inspect(now)
            case Phase.DIALLING:
                self._finish_dialling(now)
            case Phase.ASKING:
                self._read_reply(now)
        return False

    def expire(self, now: float) -> float | None:
        if self.phase is Phase.RELAYING:
            return self._expire_relay(now)
        if now < self._deadline:
            return self._deadline
        if self.phase is Phase.OPENING:
            self.refuse("its header did not come in time", Status.TIMED_OUT)
        elif self.phase is Phase.INSPECTING:
            assert self._first is not None
            self._ask_gate(self._first.give_up(), now)
        elif self.phase is not Phase.CLOSED:
            self.refuse(f"cannot connect to {self.target}: timed out", Status.TIMED_OUT)
        return None

    def _set_deadline(self, deadline: float) -> None:
        self._deadline = deadline
        self._loop.timers.set(self, deadline)

    # header and destination

    def _read_opening(self, now: float) -> None:
        assert self._decoder is not None
        while self.phase is Phase.OPENING:
            try:
                data = self.client.recv(OPENING_READ_BYTES)
                if not data:
                    self._decoder.feed_eof()
                opening = self._decoder.feed(data)
            except BlockingIOError:
                return
            except RemoteProtocolError as exc:
                self.refuse(str(exc), Status.MALFORMED)
                return
            except OSError as exc:
                self.refuse(describe_cause(exc), Status.FAILED)
                return
            if opening is not None:
                # not watched until the relay can take its bytes: the kernel holds them back
                self._loop.forget(self.client.fileno())
                self._open(opening, now)

    def _open(self, opening: Opening, now: float) -> None:
        self._opening, self._decoder = opening, None
        if opening.destination is not None:
            self._protocol = opening.protocol
        if opening.connection_id is not None:
            self.number = opening.connection_id
        try:
            self.target = self._find_target(opening)
        except (OSError, EnclavekitError) as exc:
            self.refuse(describe_cause(exc), Status.FAILED)
            return
        if self.service.gate is None:
            self._dial(now)
        else:
            self._ask_gate(None, now)

    def _find_target(self, opening: Opening) -> Address:
        """Return what to connect to. Raises OSError, TransportError."""
        upstream, offset = self.service.upstream, self.frontend.offset
        match self.service.mode:
            case Mode.VSOCK_TO_IP_TRANSPARENT:
                assert opening.destination is not None
                self._destination = opening.destination
                return opening.destination
            case Mode.TRANSPARENT_PORT_TO_VSOCK:
                assert upstream is not None and isinstance(upstream.first, VsockAddress)
                return VsockAddress(upstream.first.cid, read_original(self.client).port)
            case Mode.IP_TO_VSOCK_TRANSPARENT:
                self._destination = read_original(self.client)
                name = self.client.getsockname()
                same = self._destination == TcpAddress(plain_address(name[0]), self.frontend.port)
                # TPROXY leaves the packet as it was: another machine's address is no sign of a loop
                if same and (not self.service.tproxy or is_own_address(self._destination.host)):
                    reason = "the connection was made to the proxy itself, nothing diverted it"
                    raise TransportError("connect to", self._destination, reason)
        assert upstream is not None
        return upstream.at(offset if upstream.ports > 1 else 0)

    # policy

    def _ask_gate(self, shown: Shown | None, now: float) -> None:
        """Go on if the policy allows it; `shown` is what the first bytes show, None before anybody looked."""
        assert self.service.gate is not None and self._destination is not None
        decision = self.service.gate.decide(self._destination, shown, self.number, self._protocol.value)
        if decision.needs_bytes:
            self.phase, self._first = Phase.INSPECTING, self.service.gate.begin_inspection()
            self._set_deadline(now + self.service.limits.inspect_timeout_s)
            self._loop.watch(self.client.fileno(), self, CLIENT, READABLE)
            if self._opening.rest:
                self._loop.enqueue(self)
            return
        if self._first is not None:
            self._loop.forget(self.client.fileno())
            self._opening = replace(self._opening, rest=self._first.data)
            self._first = None
        if decision.is_allowed:
            self._dial(now)
        else:
            self.refuse(f"cannot connect to {self._destination}: {decision.reason.value}", Status.DENIED, logged=True)

    def _inspect(self, now: float) -> None:
        assert self._first is not None
        shown = self._first.feed(self._opening.rest) if not self._first.data else None
        try:
            while shown is None:
                data = self.client.recv(OPENING_READ_BYTES)
                shown = self._first.feed(data) if data else self._first.give_up()
        except BlockingIOError:
            return
        except OSError as exc:
            self.refuse(describe_cause(exc), Status.FAILED)
            return
        self._ask_gate(shown, now)

    # upstream

    def _dial(self, now: float) -> None:
        assert self.target is not None
        self.phase = Phase.DIALLING
        rules = self.service.destinations if self.service.mode is Mode.VSOCK_TO_IP_TRANSPARENT else None
        timeout_s = self.service.limits.connect_timeout_s
        try:
            begun = self._server.dialer.begin(self.target, rules, self._protocol)
            if begun is None:
                self._set_deadline(now + timeout_s + 1)  # the thread's own timeout says more
                self._server.dialer.start(self, self.target, timeout_s, rules, self._protocol)
                return
        except TransportError as exc:
            self.refuse(str(exc), status_of(exc))
            return
        except RuntimeError as exc:
            self.refuse(str(exc), Status.BUSY)
            return
        self._upstream = begun.sock
        if begun.connected:
            self._connected(now)
        else:
            self._set_deadline(now + timeout_s)
            self._loop.watch(begun.sock.fileno(), self, UPSTREAM, BOTH)

    def _finish_dialling(self, now: float) -> None:
        if self._upstream is None:
            return  # a thread is at it
        code = self._upstream.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if not code:
            try:
                self._upstream.getpeername()
            except OSError as exc:
                if exc.errno == errno.ENOTCONN:
                    return  # an event from before it was decided
                code = exc.errno or errno.EIO
        if code:
            error = TransportError("connect to", self.target, OSError(code, os.strerror(code)))
            self.refuse(str(error), status_of(error))
            return
        self._connected(now)

    def dialled(self, upstream: socket.socket | None, error: TransportError | None) -> None:
        """The thread's attempt has ended."""
        if self.phase is not Phase.DIALLING:
            if upstream is not None:
                upstream.close()
        elif upstream is None:
            assert error is not None
            self.refuse(str(error), status_of(error))
        else:
            self._upstream = upstream
            self._connected(self._server.now())

    def _connected(self, now: float) -> None:
        assert self._upstream is not None
        prepare_socket(self._upstream, self.service.limits.keepalive_s)
        if self.service.mode is not Mode.IP_TO_VSOCK_TRANSPARENT:
            self._relay_with(encode_proxied(self.service.send_proxy, self.client, self._opening), now)
            return
        assert self._destination is not None and self.target is not None
        wanted = self.service.header if self._protocol is Protocol.TCP else Header.V2  # v1 knows no other
        self._header = self._header or self._server.header_for(self.target, wanted)
        if self._header is Header.V1:
            self._relay_with(encode_destination(self._destination), now)
            return
        source = find_source(self.client, self._opening)
        message = encode_request(Request(self.number, self._destination, source, self._protocol))
        try:
            sent = self._upstream.send(message)
        except OSError as exc:
            self.refuse(f"cannot ask {self.target}: {describe_cause(exc)}", Status.FAILED)
            return
        if sent < len(message):  # a fresh socket has room for kilobytes
            self.refuse(f"cannot ask {self.target}: it takes nothing", Status.FAILED)
            return
        self.phase = Phase.ASKING
        self._watch(self._upstream, UPSTREAM)
        # the other end connects before it answers
        self._set_deadline(now + self.service.limits.connect_timeout_s + self.service.limits.header_timeout_s)

    def _read_reply(self, now: float) -> None:
        assert self._upstream is not None
        status: Status | None = None
        try:
            while status is None:
                data = self._upstream.recv(REPLY.size - len(self._reply))
                if not data:
                    raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
                self._reply += data
                status = decode_reply(self._reply)
        except BlockingIOError:
            return
        except RemoteProtocolError as exc:
            self.refuse(f"{self.target}: {exc}", Status.FAILED)
            return
        except OSError as exc:
            self._fall_back(exc, now)
            return
        if status is not Status.CONNECTED:
            self.refuse(f"{self.target} cannot connect to {self._destination}: {status.name.lower()}", status)
            return
        self._relay_with(b"", now)

    def _fall_back(self, exc: OSError, now: float) -> None:
        """The upstream ended without an answer: the Rust framework's does so with a header it does not know."""
        assert self._upstream is not None and self.target is not None
        if self.service.header is not Header.AUTO or self._reply or self._protocol is not Protocol.TCP:
            self.refuse(f"cannot ask {self.target}: {describe_cause(exc)}", Status.FAILED)
            return
        self._server.remember_v1(self.target)
        self._loop.release(self._upstream.fileno())
        self._upstream.close()
        self._upstream, self._header = None, Header.V1
        self._dial(now)

    # relay

    def _relay_with(self, announcement: bytes, now: float) -> None:
        assert self._upstream is not None
        opening = self._opening
        answer = encode_reply(Status.CONNECTED) if opening.wants_reply else b""
        held = (announcement + opening.rest, answer)
        self.phase = Phase.RELAYING
        if self._protocol is Protocol.UDP:
            limit = self.service.limits.max_datagram_bytes
            self._relay = _datagram_relay()(self.client, self._upstream, now, self._want_write, held, limit)
        else:
            self._relay = Relay(self.client, self._upstream, self._server.shared, now, self._want_write, held)
        self._relay.flows[0].total = len(opening.rest)
        self._opening = Opening()  # its bytes are the relay's now
        self._watch(self.client, CLIENT)
        self._watch(self._upstream, UPSTREAM)
        self._plan_idle()
        self._loop.enqueue(self)

    def _watch(self, sock: socket.socket, index: int) -> None:
        if self._loop.is_watched(sock.fileno()):
            self._loop.change(sock.fileno(), READABLE)
        else:
            self._loop.watch(sock.fileno(), self, index, READABLE)

    def _want_write(self, side: int) -> None:
        if self._writable >> side & 1 or self._relay is None:
            return
        self._writable |= 1 << side
        self._loop.change(self._relay.sockets[side].fileno(), BOTH)

    def _pump(self, now: float) -> bool:
        relay = self._relay
        assert relay is not None
        descriptors = (self.client.fileno(), relay.sockets[1].fileno()) if not relay.closed else (-1, -1)
        more = relay.pump(now)
        if relay.changed:
            relay.changed = False
            if relay.closed:
                for descriptor in descriptors:
                    self._loop.release(descriptor)
                self._ended()
                return False
            if relay.lingering:
                self._set_deadline(now + self.service.limits.linger_s)
            else:
                self._plan_idle()
        return more

    def _plan_idle(self) -> None:
        assert self._relay is not None
        if idle_s := self._idle_s():
            self._loop.timers.set(self, self._relay.last_activity + idle_s)

    def _idle_s(self) -> float:
        limits = self.service.limits
        assert self._relay is not None
        if self._protocol is Protocol.UDP:
            # a session has no end of its own to wait for
            return DRAINING_SESSION_S if self._server.is_stopping else limits.udp_idle_timeout_s
        if not self._relay.half_closed:
            return limits.idle_timeout_s
        return min(filter(None, (limits.half_close_timeout_s, limits.idle_timeout_s)), default=0.0)

    def _expire_relay(self, now: float) -> float | None:
        relay = self._relay
        assert relay is not None
        if relay.lingering:
            if now < self._deadline:
                return self._deadline
            self.close(reset=False)
            return None
        idle_s = self._idle_s()
        if not idle_s:
            return None
        due = relay.last_activity + idle_s
        if now < due:
            return due
        self.frontend.log.info("closed", conn=f"{self.number:016x}", cause="idle", idle_s=round(idle_s, 1))
        self.close(reset=True)
        return None

    # ends

    def refuse(self, cause: str, status: Status, *, logged: bool = False) -> None:
        """Close before anything was relayed; tell the client as far as it can be told. `logged`: the log has it."""
        opening, decoder = self._opening, self._decoder
        where = {} if self.target is None else {"upstream": str(self.target)}
        write = self.frontend.log.debug if logged else self.frontend.log.warning
        write("refused", conn=f"{self.number:016x}", peer=self.peer.text, cause=cause, **where)
        self.frontend.totals.refused += 1
        told = False
        if opening.wants_reply or (decoder is not None and decoder.wants_reply):
            try:
                told = self.client.send(encode_reply(status)) > 0
            except OSError:
                pass  # it has left
        self.close(reset=not told)

    def close(self, *, reset: bool) -> None:
        """Close both ends, whatever the phase."""
        if self.phase is Phase.CLOSED:
            return
        self._loop.release(self.client.fileno())
        if self._upstream is not None:
            self._loop.release(self._upstream.fileno())
        if self._relay is not None:
            self._relay.close(reset=reset)
        else:
            close_socket(self.client, reset=reset)
            if self._upstream is not None:
                close_socket(self._upstream, reset=reset)
        self._ended()

    def _ended(self) -> None:
        up, down = (flow.total for flow in self._relay.flows) if self._relay is not None else (0, 0)
        if self._relay is not None and self._protocol is Protocol.UDP:
            assert isinstance(self._relay, _datagram_relay())
            self.frontend.totals.dropped += sum(flow.dropped for flow in self._relay.flows)
        self.phase = Phase.CLOSED
        self._loop.drop(self)
        self.frontend.ended(self, up, down)

    def drain(self, now: float) -> None:
        """The proxy is to end: a session of datagrams does, once it is quiet."""
        if self.phase is Phase.RELAYING and self._protocol is Protocol.UDP:
            self._set_deadline(now)


def _datagram_relay() -> type[DatagramRelay]:
    from enclavekit_pf_proxy.udp.relay import DatagramRelay

    return DatagramRelay
