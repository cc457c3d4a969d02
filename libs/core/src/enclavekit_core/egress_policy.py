# SPDX-License-Identifier: Apache-2.0
"""What an enclave may connect to: strict YAML, written by who builds the image, measured with it, read inside. Pure."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from msgspec import Meta

from enclavekit_core.address import parse_port_range
from enclavekit_core.config import StrictConfig, parse_config
from enclavekit_core.errors import ConfigError
from enclavekit_core.host_names import matches, normalise_pattern
from enclavekit_core.ip_addresses import IpAddress, IpNetwork, unwrap

MAX_RULES = 1024
MAX_PORT = 65535
ALL_PORTS = ((0, MAX_PORT),)
SETTINGS = ("private_address", "absent_name", "encrypted_name")
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
    """Connections need not show the name in their first bytes (databases, anything where the server speaks first, UDP
    that is not QUIC)."""
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

    @property
    def reads_quic(self) -> bool:
        """Whether it is a rule for UDP sessions that have to show their name, which only QUIC does."""
        return self.pattern is not None and "udp" in self.protocols and not self.absent_name

    @property
    def target(self) -> str:
        """Its name or network; an address without the length of its prefix."""
        if self.network is not None and self.network.prefixlen == self.network.max_prefixlen:
            return str(self.network.network_address)
        return self.pattern or str(self.network)


@dataclass(frozen=True, slots=True)
class Policy:
    """Without rules nothing is allowed."""

    allow: Sequence[Rule] = ()
    deny: Sequence[Rule] = ()


def parse_policy(text: str | bytes, source: str) -> Policy:
    """Parse the file's text. Raises ConfigError that names `source` and the rule."""
    return make_policy(parse_config(PolicyConfig, text, source), source)


def make_policy(config: PolicyConfig, source: str, keys: tuple[str, str] = ("allow", "deny")) -> Policy:
    """Return the rules in normal form.

    Args: keys: what the lists of `config` are called in `source`.
    Raises: ConfigError that names `source` and the rule.
    """
    allow = [_make_allow(number, rule, f"{keys[0]}[{number}]", source) for number, rule in enumerate(config.allow)]
    deny = [_make_deny(number, rule, f"{keys[1]}[{number}]", source) for number, rule in enumerate(config.deny)]
    return Policy(tuple(allow), tuple(deny))


def _make_allow(number: int, rule: AllowConfig, where: str, source: str) -> Rule:
    pattern, network = _target(rule, where, source)
    if network is not None and any(getattr(rule, setting) for setting in SETTINGS):
        raise ConfigError(source, where, "a network needs no name: the settings of names do not go with it")
    ports = _parse_ports(rule.ports, where, source)
    settings = {setting: getattr(rule, setting) for setting in SETTINGS}
    return Rule(number, pattern, network, ports, frozenset([rule.protocol]), **settings)


def _make_deny(number: int, rule: DenyConfig, where: str, source: str) -> Rule:
    ports = _parse_ports(rule.ports, where, source) or ALL_PORTS
    protocols = frozenset([rule.protocol] if rule.protocol else ["tcp", "udp"])
    return Rule(number, *_target(rule, where, source), ports, protocols)


def _target(rule: AllowConfig | DenyConfig, where: str, source: str) -> tuple[str | None, IpNetwork | None]:
    if bool(rule.name) == bool(rule.network):
        raise ConfigError(source, where, "it must have a name or a network, one of them")
    if rule.name:
        pattern = normalise_pattern(rule.name)
        if pattern is None:
            hint = "" if rule.name.isascii() else " (write the name's ASCII form, xn--...)"
            raise ConfigError(source, where, f"{rule.name!r} is neither a host name nor *.NAME{hint}")
        return pattern, None
    try:
        network = ipaddress.ip_network(rule.network)
    except ValueError as exc:
        raise ConfigError(source, where, f"{rule.network!r} is no network: {exc}") from exc
    if network.version == 6 and unwrap(network.network_address).version == 4 and network.prefixlen >= 96:
        raise ConfigError(source, where, f"the network {rule.network} stands for IPv4 addresses: write those")
    return None, network


def _parse_ports(ports: Ports, where: str, source: str) -> tuple[tuple[int, int], ...]:
    found = []
    for port in ports:
        try:
            found.append(parse_port_range(port))
        except ValueError as exc:
            raise ConfigError(source, where, str(exc)) from exc
    return tuple(found)


def ports_text(rule: Rule) -> list[int | str]:
    """Return the ports as the file has them; none for all."""
    if rule.ports == ALL_PORTS:
        return []
    return [first if first == last else f"{first}-{last}" for first, last in rule.ports]


def render_policy(policy: Policy) -> str:
    """Return the file's text: the same rules in the same order give the same bytes."""
    lines = [f"{key}:{'' if rules else ' []'}\n" + _lines(rules, key) for key, rules in _lists(policy)]
    return "".join(lines)


def _lists(policy: Policy) -> Iterable[tuple[str, Sequence[Rule]]]:
    return (("allow", policy.allow), ("deny", policy.deny))


def _lines(rules: Sequence[Rule], key: str) -> str:
    return "".join(f"- {render_rule(rule, deny=key == 'deny')}\n" for rule in rules)


def render_rule(rule: Rule, *, deny: bool = False, names: tuple[str, str, str] = ("name", "network", "ports")) -> str:
    """Return one rule on a line, as YAML's flow style has it.

    Args: names: what the keys for a name, a network and the ports are called.
    """
    words = [f"{names[0] if rule.pattern else names[1]}: {json.dumps(rule.target)}"]
    if ports := ports_text(rule):
        words.append(f"{names[2]}: [{', '.join(map(str, ports))}]")
    if deny:
        words += [f"protocol: {min(rule.protocols)}"] if len(rule.protocols) == 1 else []
    elif "udp" in rule.protocols:
        words.append("protocol: udp")
    words += [f"{setting}: true" for setting in SETTINGS if getattr(rule, setting)]
    return f"{{{', '.join(words)}}}"
