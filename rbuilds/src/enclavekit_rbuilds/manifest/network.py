# SPDX-License-Identifier: Apache-2.0
"""The app's network as the image holds it: one pf-proxy for all of it, its files, and a table for the parent. Pure."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field

from enclavekit_core.errors import ConfigError

from enclavekit_rbuilds.framework.closure import EGRESS, NETWORK, QUIC
from enclavekit_rbuilds.manifest.egress import (
    LEARNED_PATH,
    PARENT_DNS_PORTS,
    PARENT_PORT,
    RULES_NAME,
    Egress,
    plan_egress,
)
from enclavekit_rbuilds.manifest.model import IngressRule, Network

PIPELINE_PORT, CONTROL_PORT, ATTESTATION_PORT = 53000, 9001, 8443
PROXY = "/usr/bin/pf-proxy"
WAIT = ("/usr/bin/python3", "-I", "-m", "enclavekit_pf_proxy.loopback", "wait")
TABLE_PATH = b"etc/enclavekit/network.json"
PROXY_PATH = b"etc/enclavekit/proxy.yaml"
MAX_CONNECTIONS = 8192  # of the app, at a time, as far as the enclave's descriptors suffice
MAX_UDP_SESSIONS = 1024  # beyond it the one that was silent for longest gives way


@dataclass(frozen=True, slots=True)
class Ingress:
    """One rule."""

    port: int
    vsock_port: int
    """Of the enclave; its proxy connects to 127.0.0.1:port."""


@dataclass(frozen=True, slots=True)
class NetworkPlan:
    """Everything that follows from the manifest's `network`."""

    mode: str = "none"
    egress: Egress | None = None
    ingress: tuple[Ingress, ...] = ()
    units: dict[str, str] = field(default_factory=dict)
    """File name in /service -> text."""
    files: dict[bytes, bytes] = field(default_factory=dict)
    """Path in the framework's root -> content."""
    app_files: dict[bytes, bytes] = field(default_factory=dict)
    """Path in the app's root -> content, instead of what it had there."""

    def table(self) -> dict[str, object]:
        """Return what the parent has to know: the image's metadata and network.json have it."""
        ingress = [asdict(rule) for rule in self.ingress]
        if self.egress is None:
            return {"ingress": ingress}
        learns = {"insecure_learn": True} if self.egress.insecure_learn else {}
        return {"outbound": self.egress.table(), "policy": self.egress.describe(), **learns, "ingress": ingress}

    @property
    def services(self) -> frozenset[str]:
        """What the framework has to hold for it, beside what the manifest's services need."""
        if self.egress is not None:
            return frozenset({EGRESS, QUIC} if self.egress.reads_quic else {EGRESS})
        return frozenset({NETWORK} if self.ingress else ())


def plan_network(
    network: Network, services: Collection[str], source: str, proxied_port: int | None = None
) -> NetworkPlan:
    """Return what the image needs for `network`. Raises ConfigError, which names `source`.

    Args:
        proxied_port: where the attestation server takes connections of proxies.
    """
    egress = plan_egress(network.egress, network.deny, source, ipv6=network.ipv6, insecure_learn=network.insecure_learn)
    ingress = _plan_ingress(network.ingress, services, source, proxied_port)
    mode = _mode(network, source, has_egress=egress is not None)
    plan = NetworkPlan(mode, egress, ingress)
    if mode == "none":
        return plan
    config = f"/{PROXY_PATH.decode()}"
    units, files = {}, {PROXY_PATH: _proxy_config(egress, ingress).encode()}
    app_files: dict[bytes, bytes] = {}
    options, listening, transparent = [], [], []
    if egress is not None:
        files |= egress.files()
        app_files[b"etc/resolv.conf"] = files[b"etc/resolv.conf"]
        units["network-rules.service"] = _unit(
            "Leads what the app sends elsewhere to the proxy. The app does not start without.",
            {
                "Type": "oneshot",
                "ExecStart": [PROXY, "rules", "apply", config],
                "RequiredBy": ["app"],
                "CapabilityBoundingSet": ["CAP_NET_ADMIN", "CAP_NET_RAW"],  # the latter for iptables
                "NoNewPrivileges": True,
            },
        )
        listening = [egress.dns_listen, egress.listen]
        transparent = ["CAP_NET_RAW"] if egress.has_udp else []  # to answer as the machine that was written to
        options = ["--insecure-learn", LEARNED_PATH] if egress.insecure_learn else []
    units["network.service"] = _unit(
        "The app's network: decides on every connection that it makes, and takes those that it gets.",
        {
            "ExecStart": [PROXY, "run", config, *options],
            # the app does not start before it can be served
            **({"ExecStartPost": " ".join((*WAIT, *listening))} if listening else {}),
            # beside the rules, which it does not need: only the app needs both
            "RequiredBy" if egress is not None else "Before": ["app"],
            "Restart": "always",
            "RestartSec": 1,
            "CapabilityBoundingSet": ["CAP_NET_BIND_SERVICE", *transparent],
            "NoNewPrivileges": True,
        },
    )
    table = (json.dumps(plan.table(), indent=2) + "\n").encode()
    return NetworkPlan(mode, egress, ingress, units, {**files, TABLE_PATH: table}, app_files)


def _proxy_config(egress: Egress | None, ingress: Sequence[Ingress]) -> str:
    """Return the configuration of `pf-proxy run`."""
    lines, listeners = [], []
    if egress is not None:
        upstreams = ", ".join(f'"parent:{port}"' for port in PARENT_DNS_PORTS)
        lines += [
            "policy: egress.yaml",
            f'dns: {{listen: "{egress.dns_listen}", upstreams: [{upstreams}]}}',
            # not by the process that serves; all that it sends over IP stays in the enclave, so nothing needs a mark
            f"rules: {{name: {RULES_NAME}, apply: false, mark: false, divert_dns: true}}",
            "network: {default_route: lo}",
        ]
        if egress.has_udp:  # before TCP's listener, which the app waits for
            sessions = f"{{max_connections: {MAX_UDP_SESSIONS}, max_per_source: 0}}"  # the app is the one source
            listeners.append(
                f'{{name: egress-udp, mode: ip-to-vsock-transparent, listen: "{egress.listen}", protocol: udp, '
                f'divert: {{}}, upstream: "parent:{PARENT_PORT}", limits: {sessions}}}'
            )
        limits = f"{{max_connections: {MAX_CONNECTIONS}}}"
        listeners.append(
            f'{{name: egress, mode: ip-to-vsock-transparent, listen: "{egress.listen}", '
            f'divert: {{}}, upstream: "parent:{PARENT_PORT}", limits: {limits}}}'
        )
    listeners += [
        f'{{name: ingress-{rule.port}, mode: vsock-to-ip, listen: "any:{rule.vsock_port}", '
        f'upstream: "127.0.0.1:{rule.port}"}}'
        for rule in ingress
    ]
    lines += ["listeners:", *(f"- {listener}" for listener in listeners)]
    return "".join(f"{line}\n" for line in lines)


def _plan_ingress(
    rules: Sequence[IngressRule], services: Collection[str], source: str, proxied_port: int | None
) -> tuple[Ingress, ...]:
    owners = {CONTROL_PORT: "the control channel"}
    if "pipeline" in services:
        owners[PIPELINE_PORT] = "the pipeline"
    if "attestation" in services:
        owners[ATTESTATION_PORT] = "the attestation server"
        if proxied_port is not None:
            owners[proxied_port] = "attestation.proxied_port"
    planned: list[Ingress] = []
    for number, rule in enumerate(rules):
        vsock_port = rule.port if rule.vsock_port is None else rule.vsock_port
        if vsock_port in owners:
            reason = f"vsock port {vsock_port} is taken by {owners[vsock_port]}: give another vsock_port"
            raise ConfigError(source, f"network.ingress[{number}]", reason)
        if any(other.port == rule.port for other in planned):
            raise ConfigError(source, f"network.ingress[{number}]", f"port {rule.port} is there twice")
        owners[vsock_port] = f"port {rule.port}"
        planned.append(Ingress(rule.port, vsock_port))
    return tuple(sorted(planned, key=lambda rule: (rule.vsock_port, rule.port)))


def _mode(network: Network, source: str, *, has_egress: bool) -> str:
    """Return the mode that follows from the rules; one that is given must be the same."""
    follows = {(False, False): "none", (True, False): "forward", (False, True): "reverse", (True, True): "both"}[
        has_egress, bool(network.ingress)
    ]
    if network.mode in (None, follows):
        return follows
    reason = {"none": "no egress and no ingress rule", "forward": "egress rules only", "reverse": "ingress rules only"}
    raise ConfigError(
        source,
        "network.mode",
        f"{network.mode} goes with {reason.get(network.mode, 'egress and ingress rules')}, but what is listed is "
        f"{follows}: list exactly what may be reached",
    )


def _unit(what: str, keys: dict[str, object]) -> str:
    """Return a unit file: TOML, whose strings and lists are JSON's."""
    lines = [f"# {what}", *(f"{key} = {json.dumps(value)}" for key, value in keys.items())]
    return "".join(f"{line}\n" for line in lines)
