# SPDX-License-Identifier: Apache-2.0
"""What a connection does next between its first byte and its relay: something happened, one step follows. Pure.

    OPENING     headers from the client, where any are expected
    INSPECTING  the stream's first bytes, where a policy wants to see them
    DIALLING    the upstream connects
    ASKING      the upstream, another proxy, was told of the destination and answers

Whoever drives it takes the step that a method returns and tells how it went; None: wait for more.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from enclavekit_core.address import Address, TcpAddress
from enclavekit_core.errors import LocalProtocolError, RemoteProtocolError

from enclavekit_pf_proxy.announcement import Ends, encode_proxied, find_source
from enclavekit_pf_proxy.service import Header, Mode, Service
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
    from enclavekit_pf_proxy.policy.decision import Decision
    from enclavekit_pf_proxy.policy.first_bytes import FirstBytes, Shown
    from enclavekit_pf_proxy.policy.first_datagrams import FirstDatagrams


class Phase(enum.Enum):
    OPENING = "waiting for its header"
    INSPECTING = "waiting for its first bytes"
    DIALLING = "connecting to its upstream"
    ASKING = "waiting for the upstream's answer"
    RELAYING = "relaying"
    CLOSED = "closed"


@dataclass(slots=True)
class Read:
    """Wait for bytes of the client: `client_sent` or `client_failed`."""

    timeout_s: float


@dataclass(slots=True)
class Locate:
    """Find out where it is to go: `located`."""

    opening: Opening


@dataclass(slots=True)
class Decide:
    """Ask the policy: `decided`."""

    shown: Shown | None
    """What the first bytes show; None before anybody looked."""


@dataclass(slots=True)
class Dial:
    """Connect to `target`: `connected` or `not_connected`."""


@dataclass(slots=True)
class Redial:
    """The upstream knows the first header only: drop this connection to it and make another."""


@dataclass(slots=True)
class Ask:
    """Send `message` to the upstream and wait for `wanted` bytes of its answer: `upstream_sent`, `upstream_failed`."""

    message: bytes
    timeout_s: float


@dataclass(slots=True)
class BeginRelay:
    """Both ends are there; these bytes go first."""

    to_upstream: bytes
    to_client: bytes
    from_client: int
    """How many bytes of the client's stream are among them."""


@dataclass(slots=True)
class Refuse:
    """Close; tell the client as far as it can be told."""

    cause: str
    status: Status
    logged: bool = False
    """The log has it already."""


Step = Read | Locate | Decide | Dial | Redial | Ask | BeginRelay | Refuse
DIAL, REDIAL = Dial(), Redial()


class Handshake:
    """The state of one connection that is not relayed yet."""

    __slots__ = ("_decoder", "_first", "_header", "_reply", "_service", "destination", "number", "opening", "phase",
                 "target")  # fmt: skip

    def __init__(self, service: Service, number: int, first: bytes = b"") -> None:
        """`number`: its id, unless a header says another. `first`: what came before it, for the upstream's stream."""
        self._service = service
        self.number = number
        self.phase = Phase.OPENING
        self.opening = Opening(rest=first)
        """What headers said."""
        self.target: Address | None = None
        """What is connected to; None while it is not known."""
        self.destination: TcpAddress | None = None
        """Where a diverted connection was going, or what a header asked for."""
        self._decoder: OpeningDecoder | None = None
        self._first: FirstBytes | FirstDatagrams | None = None
        self._header: Header | None = None
        self._reply = b""

    @property
    def reads_client(self) -> bool:
        """Whether it waits for bytes of the client."""
        return self.phase is Phase.OPENING or self.phase is Phase.INSPECTING

    @property
    def first(self) -> FirstBytes | FirstDatagrams | None:
        """What has collected the first bytes, once the policy wanted to see them."""
        return self._first

    @property
    def wants_reply(self) -> bool:
        """Whether the client speaks the versioned header, which is answered."""
        return self.opening.wants_reply or (self._decoder is not None and self._decoder.wants_reply)

    @property
    def tells_ends(self) -> bool:
        """Whether the upstream is told who the client is."""
        return self._service.send_proxy > 0 or self._service.mode is Mode.IP_TO_VSOCK_TRANSPARENT

    @property
    def protocol(self) -> Protocol:
        """What is carried: the service's, or what a header asked for."""
        return self._service.protocol if self.opening.destination is None else self.opening.protocol

    @property
    def wanted(self) -> int:
        """How many bytes of the answer are missing."""
        return REPLY.size - len(self._reply)

    def begin(self) -> Step:
        from_header = self._service.mode is Mode.VSOCK_TO_IP_TRANSPARENT
        if not (from_header or self._service.accept_proxy):
            return Locate(self.opening)
        self._decoder = OpeningDecoder(expects_proxied=self._service.accept_proxy, expects_destination=from_header)
        return Read(self._service.limits.header_timeout_s)

    # the client

    def append(self, data: bytes, max_bytes: int) -> bool:
        """Have `data` go to the upstream behind what came before; return whether there is room for it."""
        if len(self.opening.rest) + len(data) > max_bytes:
            return False
        self.opening = replace(self.opening, rest=self.opening.rest + data)
        return True

    def client_sent(self, data: bytes) -> Step | None:
        """Take bytes of the client, while it `reads_client`; none are its end."""
        if self.phase is Phase.INSPECTING:
            assert self._first is not None
            shown = self._first.feed(data) if data else self._first.give_up()
            return None if shown is None else Decide(shown)
        self._expect(Phase.OPENING)
        assert self._decoder is not None
        try:
            if not data:
                self._decoder.feed_eof()
            opening = self._decoder.feed(data)
        except RemoteProtocolError as exc:
            return Refuse(str(exc), Status.MALFORMED)
        if opening is None:
            return None
        self.opening, self._decoder = opening, None
        if opening.connection_id is not None:
            self.number = opening.connection_id
        return Locate(opening)

    def client_failed(self, cause: str) -> Step:
        return Refuse(cause, Status.FAILED)

    def located(self, target: Address, destination: TcpAddress | None) -> Step:
        """It is to go to `target`; `destination` is what a policy is asked about and the upstream is told."""
        self._expect(Phase.OPENING)
        self.target, self.destination = target, destination
        return self._dial() if self._service.gate is None else Decide(None)

    def not_located(self, cause: str) -> Step:
        return Refuse(cause, Status.FAILED)

    # policy

    def decided(self, decision: Decision, first: FirstBytes | FirstDatagrams | None) -> Step:
        """Take the policy's word. `first`: what collects the first bytes, if it wants to see them."""
        if decision.needs_bytes and self._first is None:
            assert first is not None
            self.phase, self._first = Phase.INSPECTING, first
            shown = first.feed(self.opening.rest)
            return Read(self._service.limits.inspect_timeout_s) if shown is None else Decide(shown)
        if self._first is not None:
            self.opening = replace(self.opening, rest=self._first.data)
            self._first = None
        if decision.is_allowed:
            return self._dial()
        return Refuse(f"cannot connect to {self.destination}: {decision.reason.value}", Status.DENIED, logged=True)

    # the upstream

    def _dial(self) -> Step:
        self.phase = Phase.DIALLING
        return DIAL

    def not_connected(self, cause: str, status: Status) -> Step:
        self._expect(Phase.DIALLING)
        return Refuse(cause, status)

    def connected(self, header: Header, ends: Ends) -> Step:
        """The upstream is there. `header`: what it is told of a destination with; `ends`: the client's connection."""
        self._expect(Phase.DIALLING)
        if self._service.mode is not Mode.IP_TO_VSOCK_TRANSPARENT:
            return self._relay(encode_proxied(self._service.send_proxy, self.opening, ends, self.number))
        assert self.destination is not None
        # v1 knows no other protocol
        self._header = self._header or (header if self.protocol is Protocol.TCP else Header.V2)
        if self._header is Header.V1:
            return self._relay(encode_destination(self.destination))
        self.phase = Phase.ASKING
        limits = self._service.limits
        message = encode_request(Request(self.number, self.destination, find_source(self.opening, ends), self.protocol))
        # the other end connects before it answers
        return Ask(message, limits.connect_timeout_s + limits.header_timeout_s)

    def upstream_sent(self, data: bytes) -> Step | None:
        """Take bytes of the answer, `wanted` at the most; none are the upstream's end."""
        self._expect(Phase.ASKING)
        if not data:
            return self.upstream_failed("the connection ended")
        self._reply += data
        try:
            status = decode_reply(self._reply)
        except RemoteProtocolError as exc:
            return Refuse(f"{self.target}: {exc}", Status.FAILED)
        if status is None:
            return None
        if status is Status.CONNECTED:
            return self._relay(b"")
        return Refuse(f"{self.target} cannot connect to {self.destination}: {status.name.lower()}", status)

    def upstream_failed(self, cause: str) -> Step:
        """It ended without an answer: the Rust framework's does so with a header that it does not know."""
        self._expect(Phase.ASKING)
        if self._service.header is not Header.AUTO or self._reply or self.protocol is not Protocol.TCP:
            return Refuse(f"cannot ask {self.target}: {cause}", Status.FAILED)
        self._header, self.phase = Header.V1, Phase.DIALLING
        return REDIAL

    def expired(self) -> Step:
        """The time of the last step is over."""
        match self.phase:
            case Phase.OPENING:
                return Refuse("its header did not come in time", Status.TIMED_OUT)
            case Phase.INSPECTING:
                assert self._first is not None
                return Decide(self._first.give_up())
        return Refuse(f"cannot connect to {self.target}: timed out", Status.TIMED_OUT)

    def _relay(self, announcement: bytes) -> Step:
        self.phase = Phase.RELAYING
        reply = encode_reply(Status.CONNECTED) if self.opening.wants_reply else b""
        return BeginRelay(announcement + self.opening.rest, reply, len(self.opening.rest))

    def _expect(self, phase: Phase) -> None:
        if self.phase is not phase:
            raise LocalProtocolError(f"cannot go on with a connection: {self.phase.value}, not {phase.value}")
