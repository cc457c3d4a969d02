# SPDX-License-Identifier: Apache-2.0
"""Addresses of proxies and of their clients. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Hashable, Sequence

from enclavekit_core.errors import ConfigError

IPV6_PREFIX = 64  # what one client has at least: by single addresses it would be as many clients as it likes

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def parse_networks(texts: Sequence[str]) -> tuple[Network, ...]:
    """Return the addresses and networks of a configuration. Raises ConfigError."""
    try:
        return tuple(ipaddress.ip_network(text) for text in texts)
    except ValueError as exc:
        raise ConfigError("proxied_from", "", str(exc)) from exc


def is_in(host: str, networks: Sequence[Network]) -> bool:
    """Whether the address is in one of the networks."""
    address = _unmapped(host)
    return any(address in network for network in networks)


def is_loopback(host: str) -> bool:
    return host.startswith("127.") or host in ("::1", "::ffff:127.0.0.1")


def client_of_host(host: str) -> Hashable:
    """Return what limits count as one client: an IPv4 address, or the network of an IPv6 one."""
    address = _unmapped(host)
    if isinstance(address, ipaddress.IPv6Address):
        return ipaddress.ip_network((address, IPV6_PREFIX), strict=False)
    return address


def _unmapped(host: str) -> Address:
    """Return the address; an IPv4 one also where an IPv6 socket tells of it."""
    address = ipaddress.ip_address(host)
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address
