# SPDX-License-Identifier: Apache-2.0
"""The configuration file of `pf-proxy run`: any number of listeners. Strict YAML; unknown keys are refused."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

from enclavekit_core.address import MAX_U32, TcpAddress, VsockAddress, parse_address
from enclavekit_core.config import StrictConfig, load_config
from enclavekit_core.errors import ConfigError
from msgspec import UNSET, Meta, UnsetType
from msgspec.structs import asdict

from enclavekit_pf_proxy.cid_list import CidList
from enclavekit_pf_proxy.destinations import DestinationRules, parse_range
from enclavekit_pf_proxy.limits import Limits
from enclavekit_pf_proxy.plan import DnsPlan, Plan, parse_status
from enclavekit_pf_proxy.rules.divert import Method
from enclavekit_pf_proxy.rules.settings import (
    DivertConfig,
    NetworkConfig,
    RulesConfig,
    to_divert,
    to_network_plan,
    to_rules,
)
from enclavekit_pf_proxy.service import (
    LISTENS_ON_VSOCK,
    Endpoint,
    Header,
    Mode,
    Service,
    check_service,
    parse_endpoint,
)
from enclavekit_pf_proxy.wire.datagrams import MAX_DATAGRAM_BYTES
from enclavekit_pf_proxy.wire.request import Protocol

if TYPE_CHECKING:
    from enclavekit_pf_proxy.policy.gate import Gate

Seconds = Annotated[float, Meta(ge=0)]
Cid = Annotated[int, Meta(ge=0, le=MAX_U32)]


class LimitsConfig(StrictConfig, frozen=True):
    """As `Limits`; what is not given is the default."""

    max_connections: Annotated[int, Meta(ge=1)] | UnsetType = UNSET
    max_per_cid: Annotated[int, Meta(ge=0)] | UnsetType = UNSET
    max_per_source: Annotated[int, Meta(ge=0)] | UnsetType = UNSET
    max_datagram_bytes: Annotated[int, Meta(ge=1, le=MAX_DATAGRAM_BYTES)] | UnsetType = UNSET
    max_queued_bytes: Annotated[int, Meta(ge=4096, le=2**30)] | UnsetType = UNSET
    connect_timeout_s: Annotated[float, Meta(gt=0)] | UnsetType = UNSET
    header_timeout_s: Annotated[float, Meta(gt=0)] | UnsetType = UNSET
    inspect_timeout_s: Annotated[float, Meta(gt=0)] | UnsetType = UNSET
    idle_timeout_s: Seconds | UnsetType = UNSET
    udp_idle_timeout_s: Seconds | UnsetType = UNSET
    half_close_timeout_s: Seconds | UnsetType = UNSET
    linger_s: Seconds | UnsetType = UNSET
    keepalive_s: Annotated[int, Meta(ge=1, le=32767)] | UnsetType = UNSET


class ListenerConfig(StrictConfig, frozen=True):
    """One listener, or one per port of a range."""

    mode: Mode
    listen: str
    """Where it accepts; the port may be a range FIRST-LAST."""
    upstream: str = ""
    """Where it leads; as many ports as `listen` has, or one. `transparent-port-to-vsock`: a CID."""
    name: str = ""
    """For logs."""
    allow_cids: list[Cid] | None = None
    """Only these may connect to a vsock listener."""
    allow_cids_from: str = ""
    """Only those in this file, one a line; read again when it changes."""
    header: Header = Header.AUTO
    accept_proxy: bool = False
    """Clients begin with a PROXY header, of either version; those that do not are refused."""
    send_proxy: Annotated[int, Meta(ge=0, le=2)] = 0
    """Version of the PROXY header that the upstream gets; 0: none."""
    allow_destinations: list[str] = []
    """`vsock-to-ip-transparent`: NETWORK, NETWORK:PORT or NETWORK:FIRST-LAST that are allowed although guarded."""
    only_destinations: bool = False
    """And nothing else."""
    limits: LimitsConfig = LimitsConfig()
    protocol: Protocol = Protocol.TCP
    """What is carried; `vsock-to-ip-transparent` carries both."""
    tproxy: bool = False
    """TPROXY rules that somebody else makes lead here."""
    divert: DivertConfig | None = None
    """Rules that lead here, for as long as the proxy runs."""


class DnsConfig(StrictConfig, frozen=True):
    upstreams: Annotated[list[str], Meta(min_length=1, max_length=16)]
    """Where a resolver takes DNS over a stream, in this order: vsock addresses that lead to port 53 over TCP."""
    listen: str = "127.0.0.1:53"
    """UDP and TCP."""
    timeout_s: Annotated[float, Meta(gt=0, le=60)] = 3.0
    """Of each."""


class ProxyConfig(StrictConfig, frozen=True):
    listeners: Annotated[list[ListenerConfig], Meta(min_length=1, max_length=1024)]
    workers: int = 1
    """Processes that share each listener."""
    drain_timeout_s: Seconds = Limits().drain_timeout_s
    """How long connections may go on after SIGTERM."""
    limits: LimitsConfig = LimitsConfig()
    """For every listener that does not say otherwise."""
    policy: str = ""
    """File of the rules for `ip-to-vsock-transparent`, relative to this one."""
    dns: DnsConfig | None = None
    """The resolver that goes with the policy."""
    rules: RulesConfig = RulesConfig()
    """About the rules of listeners with `divert`."""
    network: NetworkConfig | None = None
    socket: str = ""
    """Where `pf-proxy status` is answered, unix:///path; empty: a file of its own in the runtime directory."""
    metrics_listen: str = ""
    """Where metrics and health are served over HTTP, e.g. 127.0.0.1:9464; empty: on the socket only."""


def load_plan(path: str, learn_path: str = "", *, serves: bool = True) -> Plan:
    """Read the file at `path`. Raises ConfigError, InputError.

    Args:
        learn_path: have the policy allow everything and write what it took to this file.
        serves: False for who asks for rules and routes only: the policy is not read.
    """
    config = load_config(ProxyConfig, path)
    _check_finite(config, path)
    if config.dns is not None and not config.policy and not learn_path:
        raise ConfigError(path, "dns", "it goes with a policy, which says what may be asked for")
    gate = _load_gate(config, path, learn_path) if serves else None
    services = []
    for number, listener in enumerate(config.listeners):
        source = f"{path}: listeners[{number}]"
        service = _to_service(listener, config.limits, source)
        if service.mode is Mode.IP_TO_VSOCK_TRANSPARENT:
            service = replace(service, gate=gate)
        check_service(service, source)
        services.append(service)
    if gate is not None and not any(service.gate for service in services):
        raise ConfigError(path, "policy", f"no listener is of mode {Mode.IP_TO_VSOCK_TRANSPARENT.value}")
    dns = _to_dns_plan(config.dns, path) if config.dns is not None else None
    diverts = [service.divert for service in services if service.divert is not None]
    rules = to_rules(config.rules, diverts, dns.listen if dns is not None else None, path)
    network = to_network_plan(config.network, rules) if config.network is not None else None
    status = parse_status(config.socket, config.metrics_listen, path, by_default=True)
    plan = Plan(
        services,
        config.workers,
        config.drain_timeout_s,
        gate,
        dns,
        rules,
        config.rules.backend,
        config.rules.name,
        config.rules.apply,
        network,
        status,
    )
    plan.check(path)
    return plan


def _load_gate(config: ProxyConfig, path: str, learn_path: str) -> Gate | None:
    if not config.policy and not learn_path:
        return None
    try:
        from enclavekit_pf_proxy.policy.gate import load_gate
    except ImportError as exc:
        raise ConfigError(path, "policy", f"{exc.name} is not installed: enclavekit-pf-proxy[egress] has it") from exc
    policy_path = os.path.join(os.path.dirname(path), config.policy) if config.policy else ""
    return load_gate(policy_path, learn_path)


def _to_dns_plan(given: DnsConfig, path: str) -> DnsPlan:
    listen = parse_address(given.listen, "tcp")
    if not isinstance(listen, TcpAddress):
        raise ConfigError(path, "dns.listen", f"{given.listen!r} is not HOST:PORT")
    return DnsPlan(listen, tuple(parse_address(text, "vsock") for text in given.upstreams), given.timeout_s)


def _to_service(listener: ListenerConfig, defaults: LimitsConfig, source: str) -> Service:
    if listener.allow_cids is not None and listener.allow_cids_from:
        raise ConfigError(source, "", "allow_cids and allow_cids_from exclude each other")
    transparent = listener.mode is Mode.VSOCK_TO_IP_TRANSPARENT
    if (listener.allow_destinations or listener.only_destinations) and not transparent:
        raise ConfigError(source, "", f"{listener.mode.value} has its upstream: there are no destinations to choose")
    listens_on_vsock = listener.mode in LISTENS_ON_VSOCK
    allowed = None if listener.allow_cids is None else frozenset(listener.allow_cids)
    listen = parse_endpoint(listener.listen, "vsock" if listens_on_vsock else "tcp")
    is_told = listener.protocol is Protocol.UDP and listener.mode is not Mode.IP_TO_VSOCK
    divert = to_divert(listener.divert, listen.first, listener.protocol, source, is_told=is_told)
    return Service(
        listener.mode,
        listen,
        parse_upstream(listener.mode, listener.upstream),
        name=listener.name,
        limits=replace(Limits(), **{**_given(defaults), **_given(listener.limits)}),
        allowed_cids=CidList(listener.allow_cids_from) if listener.allow_cids_from else allowed,
        header=listener.header,
        accept_proxy=listener.accept_proxy,
        send_proxy=listener.send_proxy,
        destinations=DestinationRules(tuple(map(parse_range, listener.allow_destinations)), listener.only_destinations),
        protocol=listener.protocol,
        tproxy=listener.tproxy or (divert is not None and divert.method is Method.TPROXY),
        divert=divert,
    )


def parse_upstream(mode: Mode, text: str) -> Endpoint | None:
    """Parse the upstream of a listener of `mode`; None for none. Raises ConfigError."""
    if not text:
        return None
    if mode is Mode.TRANSPARENT_PORT_TO_VSOCK and ":" not in text:
        from enclavekit_core.address import parse_cid

        return Endpoint(VsockAddress(parse_cid(text), 0))
    return parse_endpoint(text, "tcp" if mode is Mode.VSOCK_TO_IP else "vsock")


def _given(limits: LimitsConfig) -> dict[str, Any]:
    return {key: value for key, value in asdict(limits).items() if value is not UNSET}


def _check_finite(config: ProxyConfig, path: str) -> None:
    for where in (config.limits, *(listener.limits for listener in config.listeners)):
        for key, value in {**_given(where), "drain_timeout_s": config.drain_timeout_s}.items():
            if not math.isfinite(value):
                raise ConfigError(path, key, "it is not a usable number of seconds")
