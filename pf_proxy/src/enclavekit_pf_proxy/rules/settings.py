# SPDX-License-Identifier: Apache-2.0
"""What a configuration file says about rules, routes and the loopback interface."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_network
from typing import Annotated

from enclavekit_core.address import Address, TcpAddress, parse_port_range
from enclavekit_core.config import StrictConfig
from enclavekit_core.errors import ConfigError
from msgspec import UNSET, Meta, UnsetType

from enclavekit_pf_proxy.plan import NetworkPlan
from enclavekit_pf_proxy.rules.divert import DEFAULT_NAME, Backend, Divert, Method, Origin, RuleSet, check_name
from enclavekit_pf_proxy.wire.request import Protocol

REDIRECTABLE = ("127.0.0.1", "::1", "0.0.0.0", "::")  # noqa: S104 - compared


class DivertConfig(StrictConfig, frozen=True):
    """What the kernel is to bring to a listener."""

    method: Method | UnsetType = UNSET
    """redirect; tproxy where UDP is told of its destination."""
    origins: Annotated[tuple[Origin, ...], Meta(min_length=1)] = (Origin.OUTPUT,)
    """output: what this machine sends; prerouting: what it gets from others."""
    networks: list[str] = []
    """Destinations; none given: all but loopback."""
    ports: list[int | str] = []
    """Numbers and ranges FIRST-LAST; none given: all."""
    exceptions: list[str] = []
    """Destinations that are left alone."""


class RulesConfig(StrictConfig, frozen=True):
    name: str = DEFAULT_NAME
    """Of the table or chains; another for each proxy of one network namespace."""
    backend: Backend = Backend.AUTO
    apply: bool = True
    """false: `pf-proxy rules apply` does it, and `network`, with rights that the proxy then needs not have."""
    mark: bool = True
    """false: what the proxy sends is not told from what others send: it must go to loopback addresses only."""
    divert_dns: bool = False
    """Whatever is sent to port 53, at whatever address, goes to the resolver of `dns`."""


class NetworkConfig(StrictConfig, frozen=True):
    """The loopback interface is brought up at the start."""

    default_route: str = ""
    """An interface for a route to everywhere, the last of all, so that programs may send there."""


def to_rules(given: RulesConfig, diverts: Sequence[Divert], dns: TcpAddress | None, path: str) -> RuleSet | None:
    """Return the rules of all listeners together, None for none. Raises ConfigError, which names `path`."""
    if given.divert_dns:
        if dns is None:
            raise ConfigError(path, "rules.divert_dns", "there is no resolver: see `dns`")
        if dns.host not in REDIRECTABLE or not dns.port:
            raise ConfigError(path, "rules.divert_dns", f"the resolver on {dns} cannot be redirected to")
    name = check_name(given.name, f"{path}: rules.name")  # a set of it may be there still
    if not diverts and not given.divert_dns:
        return None
    return RuleSet(tuple(diverts), name, dns if given.divert_dns else None, given.mark)


def to_network_plan(given: NetworkConfig, rules: RuleSet | None) -> NetworkPlan:
    """Return what is to be set up; no route for a kind of IP that rules are there for and do not divert."""
    if rules is None or not rules.diverts:
        return NetworkPlan(given.default_route)
    versions = tuple(version for version in (4, 6) if any(divert.covers(version) for divert in rules.diverts))
    return NetworkPlan(given.default_route, versions)


def to_divert(
    given: DivertConfig | None, listen: Address, protocol: Protocol, source: str, *, is_told: bool
) -> Divert | None:
    """Return what leads to one listener. Raises ConfigError, which names `source`.

    Args: is_told: the listener has to know the destination of datagrams, which redirecting them loses.
    """
    if given is None:
        return None
    if not isinstance(listen, TcpAddress):
        raise ConfigError(source, "divert", f"nothing is diverted to {listen}")
    method = given.method if given.method is not UNSET else Method.TPROXY if is_told else Method.REDIRECT
    try:
        networks, exceptions = (tuple(map(ip_network, texts)) for texts in (given.networks, given.exceptions))
        ports = tuple(map(parse_port_range, given.ports))
    except ValueError as exc:
        raise ConfigError(source, "divert", str(exc)) from exc
    return Divert(listen, protocol, method, frozenset(given.origins), networks, ports, exceptions)
