# SPDX-License-Identifier: Apache-2.0
"""The policy file: strict YAML, read once, part of the measured image. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from enclavekit_core.config import StrictConfig, parse_config
from enclavekit_core.errors import ConfigError
from msgspec import Meta

from enclavekit_pf_proxy.destinations import IpAddress, IpNetwork, unwrap
from enclavekit_pf_proxy.policy.names import matches, normalise_pattern

MAX_RULES = 1024
MAX_PORT = 65535
Protocol = Literal["tcp", "udp"]
Ports = list[int | str]


class AllowConfig(StrictConfig, frozen=True):
    """One allow rule: a name or a network, and the ports."""

    ports: Annotated[Ports, Meta(min_length=1)]
    """Numbers, or ranges `FIRST-LAST`."""
    name: str = ""
    """Exact, or `*.example.com` for every name below example.com."""
    network: str = ""
    """An address or CIDR range that may be connected to without a name."""
    protocol: Protocol = "tcp"
    private_address: bool = False
    """The name may lead to private addresses; otherwise such answers are rebinding."""
    absent_name: bool = False
    """Connections need not show the name in their first bytes (databases, anything where the server speaks first)."""
    encrypted_name: bool = False
    """Their TLS ClientHello may be encrypted, so that its name cannot be seen."""


class DenyConfig(StrictConfig, frozen=True):
    """One deny rule, which wins over every allow rule."""

    name: str = ""
    network: str = ""
    ports: Ports = []
    """Empty: all."""
    protocol: Protocol | None = None
    """None: both."""


class PolicyConfig(StrictConfig, frozen=True):
    allow: Annotated[list[AllowConfig], Meta(max_length=MAX_RULES)] = []
    deny: Annotated[list[DenyConfig], Meta(max_length=MAX_RULES)] = []


@dataclass(frozen=True, slots=True)
class Rule:
    """Either kind, in normal form."""

    number: int
    """Its place in its list, from 0: for logs."""
    pattern: str | None
    network: IpNetwork | None
    ports: tuple[tuple[int, int], ...]
    """Inclusive ranges."""
    protocols: frozenset[str]
    private_address: bool = False
    absent_name: bool = False
    encrypted_name: bool = False

    def covers(self, protocol: str, port: int) -> bool:
        return protocol in self.protocols and any(first <= port <= last for first, last in self.ports)

    def names(self, name: str) -> bool:
        return self.pattern is not None and matches(self.pattern, name)

    def contains(self, address: IpAddress) -> bool:
        return self.network is not None and address in self.network


@dataclass(frozen=True, slots=True)
class Policy:
    """Without rules nothing is allowed."""

    allow: Sequence[Rule] = ()
    deny: Sequence[Rule] = ()


def parse_policy(text: str | bytes, source: str) -> Policy:
    """Parse the file's text. Raises ConfigError that names `source` and the rule."""
    config = parse_config(PolicyConfig, text, source)
    allow = [
        Rule(
            number,
            *_target(rule, f"allow[{number}]", source),
            _parse_ports(rule.ports, f"allow[{number}].ports", source),
            frozenset([rule.protocol]),
            rule.private_address,
            rule.absent_name,
            rule.encrypted_name,
        )
        for number, rule in enumerate(config.allow)
    ]
    for rule, given in zip(allow, config.allow, strict=True):
        where = f"allow[{rule.number}]"
        if rule.network is not None and (given.private_address or given.absent_name or given.encrypted_name):
            raise ConfigError(source, where, "a network needs no name: the settings of names do not go with it")
        if rule.network is None and given.protocol == "udp" and not given.absent_name:
            raise ConfigError(source, where, "UDP shows no name that could be checked: it needs absent_name: true")
    deny = [
        Rule(
            number,
            *_target(other, f"deny[{number}]", source),
            _parse_ports(other.ports, f"deny[{number}].ports", source) or ((0, MAX_PORT),),
            frozenset([other.protocol] if other.protocol else ["tcp", "udp"]),
        )
        for number, other in enumerate(config.deny)
    ]
    return Policy(tuple(allow), tuple(deny))


def _target(rule: AllowConfig | DenyConfig, where: str, source: str) -> tuple[str | None, IpNetwork | None]:
    if bool(rule.name) == bool(rule.network):
        raise ConfigError(source, where, "it must have a name or a network, one of them")
    if rule.name:
        pattern = normalise_pattern(rule.name)
        if pattern is None:
            raise ConfigError(source, f"{where}.name", f"{rule.name!r} is neither a host name nor *.NAME")
        return pattern, None
    try:
        network = ipaddress.ip_network(rule.network)
    except ValueError as exc:
        raise ConfigError(source, f"{where}.network", str(exc)) from exc
    if network.version == 6 and unwrap(network.network_address).version == 4 and network.prefixlen >= 96:
        raise ConfigError(source, f"{where}.network", "it stands for IPv4 addresses: write those")
    return None, network


def _parse_ports(ports: Ports, where: str, source: str) -> tuple[tuple[int, int], ...]:
    found = []
    for port in ports:
        first, dash, last = str(port).partition("-")
        digits = all(text.isascii() and text.isdigit() for text in (first, last or first))
        if not digits or (dash and not last) or not 1 <= int(first) <= int(last or first) <= MAX_PORT:
            raise ConfigError(source, where, f"{port!r} is neither a port nor a range FIRST-LAST of ports")
        found.append((int(first), int(last or first)))
    return tuple(found)
