# SPDX-License-Identifier: Apache-2.0
"""Where an end that connects to whatever it is asked for may connect to. Pure.

The asking end is not trusted with this end's own network: loopback, link-local (with the cloud's metadata service),
multicast and the like are refused unless a range names them. With `only` nothing but the ranges is allowed.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass

from enclavekit_core.errors import ConfigError
from enclavekit_core.ip_addresses import IpAddress, IpNetwork, unwrap

GUARDED: tuple[IpNetwork, ...] = tuple(
    ipaddress.ip_network(text)
    for text in (
        "0.0.0.0/8",  # this host
        "127.0.0.0/8",
        "169.254.0.0/16",  # link-local; 169.254.169.254 and .253 are AWS's metadata and DNS services
        "224.0.0.0/4",
        "240.0.0.0/4",  # reserved, broadcast
        "::/128",
        "::1/128",
        "fe80::/10",
        "ff00::/8",
        "fd00:ec2::/32",  # AWS's metadata, DNS and time services over IPv6
    )
)


@dataclass(frozen=True, slots=True)
class Range:
    """Addresses and ports that may be connected to."""

    network: IpNetwork
    first_port: int = 1
    last_port: int = 65535

    def covers(self, address: IpAddress, port: int) -> bool:
        return address in self.network and self.first_port <= port <= self.last_port


def parse_range(text: str) -> Range:
    """Parse `NETWORK`, `NETWORK:PORT` or `NETWORK:FIRST-LAST`, IPv6 in brackets where a port follows.

    Raises: ConfigError.
    """
    network, ports = text, ""
    if text.startswith("["):
        network, _, ports = text[1:].partition("]")
        ports = ports.removeprefix(":")
    elif text.count(":") == 1:
        network, _, ports = text.partition(":")
    first, _, last = ports.partition("-")
    try:
        parsed = ipaddress.ip_network(network)
        low, high = (int(first), int(last or first)) if ports else (1, 65535)
    except ValueError as exc:
        raise ConfigError(f"destination {text!r}", "", "it is not NETWORK, NETWORK:PORT or NETWORK:FIRST-LAST") from exc
    if not 1 <= low <= high <= 65535:
        raise ConfigError(f"destination {text!r}", "", "its ports are not from 1 to 65535")
    return Range(parsed, low, high)


@dataclass(frozen=True, slots=True)
class DestinationRules:
    """What `allows` says."""

    ranges: Sequence[Range] = ()
    only: bool = False
    """Refuse what no range covers; otherwise only what is guarded."""

    def allows(self, address: IpAddress, port: int) -> bool:
        inner = unwrap(address)
        if any(one.covers(inner, port) for one in self.ranges):
            return True
        return not self.only and not any(guarded for guarded in GUARDED if inner in guarded)
