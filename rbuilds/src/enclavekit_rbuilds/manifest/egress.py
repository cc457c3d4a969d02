# SPDX-License-Identifier: Apache-2.0
"""Where the app may connect to: the manifest's rules as the policy file that `pf-proxy run` reads in the enclave. Pure.

An enclave has no interface but the loopback. All that the app sends elsewhere over TCP is led there by a default route,
redirected to one listener, and decided upon; DNS goes to a resolver that asks for allowed names only. Other UDP has a
listener of its own, but only if a rule asks for UDP, as the proxy then needs a capability more. Routes and the kernel's
rules are pf-proxy's, which puts them in before it serves, in a process of its own that may. Everything that decides is
in the files that are made here, and they are measured with the app.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, replace

from enclavekit_core.egress_policy import (
    AllowConfig,
    DenyConfig,
    Policy,
    PolicyConfig,
    make_policy,
    render_policy,
    render_rule,
)
from enclavekit_core.errors import ConfigError

from enclavekit_rbuilds.manifest.model import DenyRule, EgressRule, Ports

KEYS = ("network.egress", "network.deny")
PARENT_PORT = 8888  # vsock, as the Rust framework has it: connections, with where they are to go in front
# vsock, one per resolver of the parent, as many as a C library takes of its resolv.conf; DNS over a stream
PARENT_DNS_PORTS = (8053, 8054, 8055)
REDIRECT_PORT = 15001  # in the enclave: what service meshes use for the same, so that apps keep clear of it
RULES_NAME = "egress"  # of the kernel's rules
POLICY_PATH = b"etc/enclavekit/egress.yaml"
RESOLV_CONF = b"nameserver 127.0.0.1\n"
LEARNED_PATH = "/run/egress-learned.yaml"


@dataclass(frozen=True, slots=True)
class Egress:
    """What the image needs for its rules."""

    policy: Policy
    ipv6: bool
    insecure_learn: bool

    @property
    def has_udp(self) -> bool:
        """Whether any UDP but DNS is to leave."""
        return self.insecure_learn or any("udp" in rule.protocols for rule in self.policy.allow)

    @property
    def reads_quic(self) -> bool:
        """Whether UDP sessions have to show their name."""
        return self.insecure_learn or any(rule.reads_quic for rule in self.policy.allow)

    @property
    def listen(self) -> str:
        return f"[::]:{REDIRECT_PORT}" if self.ipv6 else f"127.0.0.1:{REDIRECT_PORT}"

    @property
    def dns_listen(self) -> str:
        return "[::]:53" if self.ipv6 else "127.0.0.1:53"

    def files(self) -> dict[bytes, bytes]:
        """Return path -> content."""
        return {
            POLICY_PATH: render_policy(self.policy).encode(),
            b"etc/resolv.conf": RESOLV_CONF,
        }

    def table(self) -> dict[str, object]:
        """Return what the parent has to offer."""
        return {"vsock_port": PARENT_PORT, "dns_ports": list(PARENT_DNS_PORTS)}

    def describe(self) -> dict[str, list[str]]:
        """Return the rules for people, a line each."""
        lists = {"allow": self.policy.allow, "deny": self.policy.deny}
        return {
            key: [render_rule(rule, deny=key == "deny", names=("host", "host", "port"))[1:-1] for rule in rules]
            for key, rules in lists.items()
            if rules
        }


def plan_egress(
    rules: Sequence[EgressRule], deny: Sequence[DenyRule], source: str, *, ipv6: bool, insecure_learn: bool
) -> Egress | None:
    """Return what the image needs; None if nothing is to leave it. Raises ConfigError that names `source`."""
    allow_config, deny_config = [], []
    for number, rule in enumerate(rules):
        key = f"{KEYS[0]}[{number}]"
        name, network = _split_host(rule.host, source, f"{key}.host", ipv6=ipv6)
        allow_config.append(
            AllowConfig(
                ports=_ports(rule.port),
                name=name,
                network=network,
                protocol=rule.protocol,
                private_address=rule.private_address,
                absent_name=rule.absent_name,
                encrypted_name=rule.encrypted_name,
            )
        )
    for number, other in enumerate(deny):
        name, network = _split_host(other.host, source, f"{KEYS[1]}[{number}].host", ipv6=True)
        ports = [] if other.port is None else _ports(other.port)
        deny_config.append(DenyConfig(ports=ports, name=name, network=network, protocol=other.protocol))
    policy = make_policy(PolicyConfig(allow=allow_config, deny=deny_config), source, KEYS)
    for number, made in enumerate(policy.allow):
        for earlier in policy.allow[:number]:
            if replace(earlier, number=number) == made:
                raise ConfigError(source, f"{KEYS[0]}[{number}]", f"{made.target} is there twice, with the same ports")
    if not policy.allow and not insecure_learn:
        if policy.deny:
            raise ConfigError(source, KEYS[1], "nothing is allowed: there is nothing to deny")
        return None
    return Egress(policy, ipv6, insecure_learn)


def _split_host(text: str, source: str, key: str, *, ipv6: bool) -> tuple[str, str]:
    """Return (name or pattern, network): one is empty. Raises ConfigError."""
    try:
        network = ipaddress.ip_network(text.strip("[]"))
    except ValueError:
        if "/" in text:
            raise ConfigError(source, key, f"{text!r} is no range of addresses") from None
        name = text.lower().rstrip(".")
        if name == "localhost" or name.endswith(".localhost"):
            raise ConfigError(source, key, f"{text!r} is the enclave itself") from None
        return text, ""
    first = network.network_address
    if network.prefixlen and (first.is_loopback or first.is_unspecified or first.is_multicast):
        raise ConfigError(source, key, f"{text!r} is no address of another machine")
    if network.version == 6 and not ipv6:
        raise ConfigError(source, key, f"{text!r} is of IPv6, which the enclave has with network.ipv6: true")
    return "", str(network)


def _ports(value: Ports) -> list[int | str]:
    return list(value) if isinstance(value, list) else [value]
