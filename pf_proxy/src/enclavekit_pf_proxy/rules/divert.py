# SPDX-License-Identifier: Apache-2.0
"""What the kernel is to bring to a listener, and how: independent of which of its rule languages says it. Pure."""

from __future__ import annotations

import enum
import ipaddress
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from enclavekit_core.address import TcpAddress
from enclavekit_core.errors import ConfigError
from enclavekit_core.ip_addresses import IpNetwork

from enclavekit_pf_proxy.wire.request import Protocol

DEFAULT_NAME = "pf_proxy"
NAME = re.compile(r"[a-z][a-z0-9_]{0,15}")  # a chain's name has 28 characters, and ours add to it
OWN_MARK = 0x00E60001
"""On all that a proxy sends over IP: never diverted, whichever proxy's rules they are."""
LOOPBACK: dict[int, tuple[IpNetwork, ...]] = {
    4: (ipaddress.IPv4Network("127.0.0.0/8"),),
    6: (ipaddress.IPv6Network("::1/128"),),
}


class Method(enum.Enum):
    REDIRECT = "redirect"
    """The destination becomes the listener's; conntrack keeps what it was. TCP, and UDP where nobody asks for it."""
    TPROXY = "tproxy"
    """The packet stays as it is and is given to the listener all the same. TCP and UDP."""


class Origin(enum.Enum):
    OUTPUT = "output"
    """What this machine sends."""
    PREROUTING = "prerouting"
    """What it gets from others."""


class Backend(enum.Enum):
    AUTO = "auto"
    """nft where the kernel has nf_tables and the program is there, else iptables."""
    NFT = "nft"
    IPTABLES = "iptables"


@dataclass(frozen=True, slots=True)
class Divert:
    """Traffic for one listener."""

    listen: TcpAddress
    """Whose host says which kinds of IP there are: `::` is both."""
    protocol: Protocol = Protocol.TCP
    method: Method = Method.REDIRECT
    origins: frozenset[Origin] = frozenset([Origin.OUTPUT])
    networks: tuple[IpNetwork, ...] = ()
    """Destinations; empty: all but loopback."""
    ports: tuple[tuple[int, int], ...] = ()
    """Inclusive ranges of destination ports; empty: all."""
    exceptions: tuple[IpNetwork, ...] = ()
    """Destinations that are left alone."""

    @property
    def address(self) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
        return ipaddress.ip_address(self.listen.host)

    @property
    def versions(self) -> tuple[int, ...]:
        """The kinds of IP that it can be about."""
        if self.listen.host == "::":
            return (4, 6)
        return (self.address.version,)

    def covers(self, version: int) -> bool:
        """Say whether anything of this kind of IP is diverted."""
        return version in self.versions and (not self.networks or bool(self.networks_of(version)))

    def networks_of(self, version: int) -> tuple[IpNetwork, ...]:
        return tuple(network for network in self.networks if network.version == version)

    def exceptions_of(self, version: int) -> tuple[IpNetwork, ...]:
        """Return what is left alone; who names no networks does not mean the machine's own services."""
        given = tuple(network for network in self.exceptions if network.version == version)
        return given if self.networks else LOOPBACK[version] + given

    def check(self, source: str) -> None:
        """Raise ConfigError, which names `source`, for what no kernel could do."""
        try:
            address = self.address
        except ValueError as exc:
            raise ConfigError(source, "divert", f"{self.listen.host!r} is a name: it needs the address") from exc
        if not self.origins:
            raise ConfigError(source, "divert.origins", "it is empty: output, prerouting or both")
        if self.method is Method.REDIRECT and Origin.PREROUTING in self.origins and address.is_loopback:
            reason = f"{address} is loopback: what comes from others does not reach it"
            raise ConfigError(source, "divert", reason)
        if not any(self.covers(version) for version in (4, 6)):
            raise ConfigError(source, "divert.networks", f"none of them is of the kind of {self.listen}")


@dataclass(frozen=True, slots=True)
class RuleSet:
    """All that one proxy has the kernel divert."""

    diverts: Sequence[Divert] = ()
    name: str = DEFAULT_NAME
    """Of the table, and what chains' names begin with; another for each proxy of one network namespace."""
    dns: TcpAddress | None = None
    """A resolver that gets whatever is sent to port 53."""
    spares_own: bool = True
    """Leave alone what has OWN_MARK. False where nothing sets it: kernels and proxies then need not know of marks."""

    @property
    def mark(self) -> int:
        """On what TPROXY is to take; also the number of the routing table that brings it in."""
        return 0x00E70000 | (zlib.crc32(self.name.encode()) & 0xFFFF)

    @property
    def uses_tproxy(self) -> bool:
        return any(divert.method is Method.TPROXY for divert in self.diverts)

    def of(self, version: int, method: Method, origin: Origin) -> list[Divert]:
        return [
            divert
            for divert in self.diverts
            if divert.method is method and origin in divert.origins and divert.covers(version)
        ]

    def diverts_dns(self, version: int) -> bool:
        if self.dns is None:
            return False
        return self.dns.host == "::" or ipaddress.ip_address(self.dns.host).version == version


def check_name(name: str, source: str) -> str:
    """Return a rule set's name if it can be one. Raises ConfigError."""
    if not NAME.fullmatch(name):
        raise ConfigError(source, "", f"{name!r} is not a name of up to 16 of a-z, 0-9 and _")
    return name
