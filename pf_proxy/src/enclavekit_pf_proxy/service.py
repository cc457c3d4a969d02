# SPDX-License-Identifier: Apache-2.0
"""What one listener does: where it listens, whither it leads, what it asks for and what it tells. Pure."""

from __future__ import annotations

import enum
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from enclavekit_core.address import (
    CID_ANY,
    MAX_TCP_PORT,
    MAX_U32,
    Address,
    TcpAddress,
    UnixAddress,
    VsockAddress,
    parse_address,
)
from enclavekit_core.errors import ConfigError

from enclavekit_pf_proxy.destinations import DestinationRules
from enclavekit_pf_proxy.limits import Limits
from enclavekit_pf_proxy.rules.divert import Divert
from enclavekit_pf_proxy.wire.request import Protocol

if TYPE_CHECKING:
    from enclavekit_pf_proxy.policy.gate import Gate

MAX_PORTS = 4096  # in one range; each is a socket


class Mode(enum.Enum):
    IP_TO_VSOCK = "ip-to-vsock"
    VSOCK_TO_IP = "vsock-to-ip"
    IP_TO_VSOCK_TRANSPARENT = "ip-to-vsock-transparent"
    """The upstream is told where the connection was going."""
    VSOCK_TO_IP_TRANSPARENT = "vsock-to-ip-transparent"
    """The client tells where it is to go."""
    TRANSPARENT_PORT_TO_VSOCK = "transparent-port-to-vsock"
    """The port that the connection was going to is the vsock port."""


DIVERTED = {Mode.IP_TO_VSOCK_TRANSPARENT, Mode.TRANSPARENT_PORT_TO_VSOCK}  # for whom that is the point
LISTENS_ON_VSOCK = {Mode.VSOCK_TO_IP, Mode.VSOCK_TO_IP_TRANSPARENT}


class Header(enum.Enum):
    """How an upstream is told of a destination."""

    AUTO = "auto"
    """The versioned header; the Rust framework's where the upstream does not know it."""
    V1 = "v1"
    """The Rust framework's 7 or 19 bytes."""
    V2 = "v2"
    """The versioned header or nothing."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An address, or as many with consecutive ports."""

    first: Address
    ports: int = 1

    def at(self, offset: int) -> Address:
        """Return the address at `offset`, below `ports`."""
        if isinstance(self.first, UnixAddress) or not offset:
            return self.first
        return replace(self.first, port=self.first.port + offset)

    def __str__(self) -> str:
        if self.ports == 1 or isinstance(self.first, UnixAddress):
            return str(self.first)
        return f"{self.first}-{self.first.port + self.ports - 1}"


@dataclass(frozen=True, slots=True)
class Service:
    """One listener, or one per port of a range."""

    mode: Mode
    listen: Endpoint
    upstream: Endpoint | None
    """None: the client's header says it. Of `transparent-port-to-vsock` only the CID counts."""
    name: str = ""
    """For logs; empty means the address."""
    limits: Limits = field(default_factory=Limits)
    allowed_cids: Collection[int] | None = None
    """Peers that may connect to a vsock listener; None means all."""
    header: Header = Header.AUTO
    accept_proxy: bool = False
    """Clients begin with a PROXY header."""
    send_proxy: int = 0
    """Version of the PROXY header that the upstream gets; 0: none."""
    destinations: DestinationRules = field(default_factory=DestinationRules)
    """Where `vsock-to-ip-transparent` may connect to."""
    gate: Gate | None = None
    """What decides on each connection of `ip-to-vsock-transparent`; None: nothing does."""
    protocol: Protocol = Protocol.TCP
    """What is carried; `vsock-to-ip-transparent` is told by its clients."""
    tproxy: bool = False
    """What comes in may be meant for other machines' addresses: TPROXY brings it."""
    divert: Divert | None = None
    """What the kernel is to bring here."""

    @property
    def text(self) -> str:
        return self.name or str(self.listen)


def parse_endpoint(text: str, scheme: str) -> Endpoint:
    """Parse an address of `scheme` (as `parse_address` does) whose port may be a range FIRST-LAST.

    Raises: ConfigError.
    """
    head, dash, last = text.rpartition("-")
    if not dash or not last.isascii() or not last.isdigit() or ":" not in head:
        return Endpoint(parse_address(text, scheme))
    first = parse_address(head, scheme)
    if isinstance(first, UnixAddress):
        return Endpoint(parse_address(text, scheme))  # a dash in a path
    limit = MAX_TCP_PORT if isinstance(first, TcpAddress) else MAX_U32
    ports = int(last) - first.port + 1
    if not first.port or not 1 <= ports <= MAX_PORTS or int(last) > limit:
        raise ConfigError(f"address {text!r}", "", f"its ports are not a range of 1 to {MAX_PORTS}")
    return Endpoint(first, ports)


def check_service(service: Service, source: str) -> None:
    """Raise ConfigError, which names `source`, for a service that contradicts itself."""
    mode, listen, upstream = service.mode, service.listen.first, service.upstream
    wanted = VsockAddress if mode in LISTENS_ON_VSOCK else TcpAddress
    if not isinstance(listen, wanted | UnixAddress):
        kind = "vsock" if wanted is VsockAddress else "TCP"
        raise ConfigError(source, "", f"{mode.value} does not listen on {listen}: it is not a {kind} address")
    if mode is Mode.VSOCK_TO_IP_TRANSPARENT:
        if upstream is not None:
            raise ConfigError(source, "", f"{mode.value} has no upstream: its clients name one")
    elif upstream is None:
        raise ConfigError(source, "", f"{mode.value} needs an upstream")
    else:
        _check_upstream(service, upstream, source)
    if mode in DIVERTED and not isinstance(listen, TcpAddress):
        raise ConfigError(source, "", f"{mode.value} does not listen on {listen}: only TCP is diverted")
    if mode is Mode.IP_TO_VSOCK_TRANSPARENT and service.send_proxy:
        raise ConfigError(source, "", f"{mode.value} sends its own header, which has the source: no PROXY header")
    if service.allowed_cids is not None and not isinstance(listen, VsockAddress):
        raise ConfigError(source, "", f"clients of {listen} have no CID")
    if service.protocol is Protocol.UDP:
        _check_udp(service, source)
    if service.tproxy or service.divert is not None:
        _check_diverted(service, source)


def _check_udp(service: Service, source: str) -> None:
    mode = service.mode
    if mode is Mode.VSOCK_TO_IP_TRANSPARENT:
        raise ConfigError(source, "", f"{mode.value} is told the protocol by its clients")
    if mode not in LISTENS_ON_VSOCK and not isinstance(service.listen.first, TcpAddress):
        raise ConfigError(source, "", f"{service.listen.first} takes no datagrams: UDP needs HOST:PORT")
    if service.accept_proxy or service.send_proxy:
        raise ConfigError(source, "", "the PROXY protocol goes before a stream, and UDP is none")
    if mode is Mode.IP_TO_VSOCK_TRANSPARENT and service.header is Header.V1:
        raise ConfigError(source, "", "header v1 does not know UDP")
    if mode is Mode.IP_TO_VSOCK_TRANSPARENT and not service.tproxy:
        raise ConfigError(source, "", "of redirected datagrams nobody knows where they were going: UDP needs tproxy")


def _check_diverted(service: Service, source: str) -> None:
    if service.mode in LISTENS_ON_VSOCK:
        raise ConfigError(source, "", f"nothing is diverted to {service.mode.value}")
    divert = service.divert
    if divert is None:
        return
    if service.listen.ports != 1 or not getattr(service.listen.first, "port", 0):
        raise ConfigError(source, "divert", "it leads to one port, which the configuration must say")
    divert.check(source)


def _check_upstream(service: Service, upstream: Endpoint, source: str) -> None:
    address = upstream.first
    wanted = TcpAddress if service.mode is Mode.VSOCK_TO_IP else VsockAddress
    if not isinstance(address, wanted | UnixAddress):
        kind = "a vsock" if wanted is VsockAddress else "a TCP"
        raise ConfigError(source, "", f"{service.mode.value} does not lead to {address}: it is not {kind} address")
    if isinstance(address, VsockAddress) and address.cid == CID_ANY:
        raise ConfigError(source, "", f"address '{address}': `any` is for listening, not for connecting")
    if isinstance(address, TcpAddress) and not address.port:
        raise ConfigError(source, "", f"address '{address}': port 0 is for listening, not for connecting")
    if upstream.ports not in (1, service.listen.ports):
        reason = f"{service.listen.ports} ports cannot lead to {upstream.ports}: as many, or one"
        raise ConfigError(source, "", reason)
