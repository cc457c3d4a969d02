# SPDX-License-Identifier: Apache-2.0
"""The app's network as the image holds it: proxies as units, names in /etc/hosts, and a table for the host. Pure.

An enclave has no interface but the loopback. Each host that the app may reach gets a loopback address of its own; the
app finds it under the host's name, or under its very address, and there a proxy listens that leads to one vsock port of
the parent and nowhere else. The parent's end of it connects to that host and port.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import re
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field

from enclavekit_core.errors import ConfigError

from enclavekit_rbuilds.manifest.model import EgressRule, IngressRule, Network

FIRST_LOOPBACK = ipaddress.IPv4Address("127.0.0.2")  # 127.0.0.1 is where the framework and the app listen
# the parent's vsock ports for egress: 24 bits of a hash above the ports that anything else has. One rule has one port
# in every image, so that enclaves side by side may share what leads there; other rules have others
EGRESS_PORTS = 0x1000_0000
PIPELINE_PORT, CONTROL_PORT, ATTESTATION_PORT = 53000, 9001, 8443
LABEL = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)")
MAX_NAME = 253
PROXY = "/usr/bin/pf-proxy"
LOOPBACK = ("/usr/bin/python3", "-I", "-m", "enclavekit_pf_proxy.loopback")
ALWAYS = ('Restart = "always"', "RestartSec = 1")
ONCE = ('Type = "oneshot"',)
TABLE_PATH = b"etc/enclavekit/network.json"


@dataclass(frozen=True, slots=True)
class Egress:
    """One rule, with what it got."""

    host: str
    port: int
    vsock_port: int
    """Of the parent; its end connects to host:port."""
    address: str
    """Where the proxy listens in the enclave."""


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
    egress: tuple[Egress, ...] = ()
    ingress: tuple[Ingress, ...] = ()
    units: dict[str, str] = field(default_factory=dict)
    """File name in /service -> text."""
    hosts: tuple[tuple[str, str], ...] = ()
    """(address, name) for the app's /etc/hosts."""

    def table(self) -> dict[str, object]:
        """Return what the host has to know: the image's metadata and network.json have it."""
        return {
            "egress": [{"host": rule.host, "port": rule.port, "vsock_port": rule.vsock_port} for rule in self.egress],
            "ingress": [asdict(rule) for rule in self.ingress],
        }

    def table_file(self) -> bytes:
        return (json.dumps(self.table(), indent=2) + "\n").encode()


def plan_network(
    network: Network, services: Collection[str], source: str, proxied_port: int | None = None
) -> NetworkPlan:
    """Return what the image needs for `network`. Raises ConfigError, which names `source`.

    Args:
        proxied_port: where the attestation server takes connections of proxies.
    """
    for number, one in enumerate(network.egress):
        if one.protocol != "tcp":
            raise ConfigError(source, f"network.egress[{number}].protocol", "udp is not there yet: egress is TCP only")
    egress = _plan_egress(network.egress, source)
    ingress = _plan_ingress(network.ingress, services, source, proxied_port)
    mode = _mode(network, source)
    units = _egress_units(egress)
    for number, other in enumerate(ingress, 1):
        units[f"ingress-{number}.service"] = _unit(
            f"Brings the parent's connections to the app's port {other.port}.",
            [PROXY, "vsock-to-ip", "-v", f"any:{other.vsock_port}", "-i", f"127.0.0.1:{other.port}"],
            ALWAYS,
        )
    names = {rule.host: rule.address for rule in egress if rule.host != rule.address}
    return NetworkPlan(mode, egress, ingress, units, tuple((address, name) for name, address in names.items()))


def merge_hosts(existing: bytes, entries: Sequence[tuple[str, str]]) -> bytes:
    """Return /etc/hosts with `entries` in front; what it had for the same names goes, as resolvers may return both."""
    ours = {name.encode() for _, name in entries}
    kept, has_localhost = [], False
    for line in existing.splitlines():
        address, *names = line.partition(b"#")[0].split() or [b""]
        has_localhost |= b"localhost" in names
        if not ours.intersection(name.lower() for name in names):
            kept.append(line)
        elif others := [name for name in names if name.lower() not in ours]:
            kept.append(address + b"\t" + b" ".join(others))
    lines = [f"{address}\t{name}".encode() for address, name in entries]
    if not has_localhost:
        lines.insert(0, b"127.0.0.1\tlocalhost")  # container engines add it as well
    return b"".join(line + b"\n" for line in [*lines, *kept])


def parse_host(text: str, source: str, key: str) -> str:
    """Return an exact host name, or an address in its shortest form. Raises ConfigError."""
    if "*" in text:
        raise ConfigError(source, key, f"{text!r} is a wildcard: egress is by exact name, list each one")
    if "/" in text:
        raise ConfigError(source, key, f"{text!r} is a range: egress is by exact name or address, list each one")
    try:
        address = ipaddress.ip_address(text.strip("[]"))
    except ValueError:
        name = text.lower().rstrip(".")
        labels = name.split(".")
        if len(name) > MAX_NAME or not all(LABEL.fullmatch(label) for label in labels) or labels[-1].isdigit():
            raise ConfigError(source, key, f"{text!r} is neither a host name nor an address") from None
        if name == "localhost" or name.endswith(".localhost"):
            raise ConfigError(source, key, f"{text!r} is the enclave itself") from None
        return name
    if address.is_loopback or address.is_unspecified or address.is_multicast:
        raise ConfigError(source, key, f"{text!r} is no address of another machine")
    return str(address)


def _plan_egress(rules: Sequence[EgressRule], source: str) -> tuple[Egress, ...]:
    targets = [(parse_host(rule.host, source, f"network.egress[{i}].host"), rule.port) for i, rule in enumerate(rules)]
    for number, target in enumerate(targets):
        if target in targets[:number]:
            raise ConfigError(source, f"network.egress[{number}]", f"{target[0]}:{target[1]} is there twice")
    targets.sort()  # the order in the file does not count: the same rules are the same bytes
    names = sorted({host for host, _ in targets if _is_name(host)})
    addresses = {name: str(FIRST_LOOPBACK + number) for number, name in enumerate(names)}
    taken: set[int] = set()
    planned = []
    for host, port in targets:
        vsock_port = EGRESS_PORTS + int.from_bytes(hashlib.sha256(f"{host}:{port}".encode()).digest()[:3], "big")
        while vsock_port in taken:
            vsock_port += 1
        taken.add(vsock_port)
        planned.append(Egress(host, port, vsock_port, addresses.get(host, host)))
    return tuple(planned)


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


def _mode(network: Network, source: str) -> str:
    """Return the mode that follows from the rules; one that is given must be the same."""
    follows = {(False, False): "none", (True, False): "forward", (False, True): "reverse", (True, True): "both"}[
        bool(network.egress), bool(network.ingress)
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


def _egress_units(rules: Sequence[Egress]) -> dict[str, str]:
    """Return a proxy per rule, what they need first, and what lets the app start once all of them listen."""
    units, listening = {}, []
    claimed = sorted({rule.address for rule in rules if not _is_loopback(rule.address)})
    if claimed:
        what = "Makes the addresses that the app may reach this machine's own."
        units["egress-addresses.service"] = _unit(what, [*LOOPBACK, "claim", *claimed], ONCE)
    for number, rule in enumerate(rules, 1):
        listen = f"[{rule.address}]:{rule.port}" if ":" in rule.address else f"{rule.address}:{rule.port}"
        listening.append(listen)
        needs = ALWAYS if rule.address not in claimed else (*ALWAYS, 'Requires = ["egress-addresses"]')
        units[f"egress-{number}.service"] = _unit(
            f"What reaches {rule.host} port {rule.port}, through the parent.",
            [PROXY, "ip-to-vsock", "-i", listen, "-v", f"parent:{rule.vsock_port}"],
            needs,
        )
    if rules:
        names = json.dumps([f"egress-{number}" for number in range(1, len(rules) + 1)])
        what = "Holds the app back until every proxy listens."
        ready = (*ONCE, f"After = {names}", 'Before = ["app"]')
        units["egress-ready.service"] = _unit(what, [*LOOPBACK, "wait", *listening], ready)
    return units


def _unit(what: str, argv: Sequence[str], more: Sequence[str]) -> str:
    return "".join(f"{line}\n" for line in (f"# {what}", f"ExecStart = {json.dumps(list(argv))}", *more))


def _is_name(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return True
    return False


def _is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address).is_loopback
