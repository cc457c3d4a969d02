# SPDX-License-Identifier: Apache-2.0
"""Where the app may connect to: the manifest's rules as the policy file that `pf-proxy run` reads in the enclave. Pure.

An enclave has no interface but the loopback. All that the app sends elsewhere over TCP is led there by a default route,
redirected to one listener, and decided upon; DNS goes to a resolver that asks for allowed names only. Other UDP is
marked, a routing table for the mark brings it in, and TPROXY, which keeps the destination, hands it to a listener: but
only if a rule asks for UDP, as the proxy then needs a capability more. Everything that decides is in the files that are
made here, and they are measured with the app.
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
UDP_MARK = 0x00E60002  # of datagrams on their way to the proxy; pf-proxy's own marks are others
OWN_IPV6 = "fd00::1"  # a source address, without which nothing can be sent to an IPv6 address
POLICY_PATH = b"etc/enclavekit/egress.yaml"
RULES_PATH = b"etc/enclavekit/egress.nft"
RESOLV_CONF = b"nameserver 127.0.0.1\n"
LEARNED_PATH = "/run/egress-learned.yaml"
BUSYBOX, NFT = "/usr/bin/busybox", "/usr/sbin/nft"
LOOPBACK = ("/usr/bin/python3", "-I", "-m", "enclavekit_pf_proxy.loopback")
# the enclave itself: among what goes there are the proxy's answers to datagrams, which must not come back to it
OWN_NETWORKS = {4: "127.0.0.0/8", 6: f"{{ ::1, {OWN_IPV6} }}"}


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

    def files(self) -> dict[bytes, bytes]:
        """Return path -> content."""
        return {
            POLICY_PATH: render_policy(self.policy).encode(),
            RULES_PATH: render_redirects(ipv6=self.ipv6, udp=self.has_udp).encode(),
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

    def set_up(self) -> tuple[list[str], str]:
        """Return the commands that lead everything to the listener: those that come first, and the last."""
        routes = ["route replace default dev lo src 127.0.0.1"]
        if self.ipv6:
            routes += [
                f"-6 addr replace {OWN_IPV6}/128 dev lo",
                f"-6 route replace default dev lo src {OWN_IPV6}",
            ]
        commands = [f"{BUSYBOX} ip {route}" for route in routes]
        if self.has_udp:
            commands.append(" ".join((*LOOPBACK, "deliver", f"{UDP_MARK:#x}")))
        return commands, f"{NFT} -f /{RULES_PATH.decode()}"


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


def render_redirects(*, ipv6: bool, udp: bool = False) -> str:
    """Return the script for nft(8): a table of its own for each kind of IP, all in one transaction."""
    lines = []
    for family, version in (("ip", 4), *([("ip6", 6)] if ipv6 else [])):
        lines += [
            f"table {family} enclavekit_egress {{}}",  # so that there is one to delete
            f"delete table {family} enclavekit_egress",
            f"table {family} enclavekit_egress {{",
            "  chain output {",
            "    type nat hook output priority -100;",
            f"    {family} daddr {OWN_NETWORKS[version]} return",
            "    udp dport 53 redirect to :53",
            "    tcp dport 53 redirect to :53",
            f"    meta l4proto tcp redirect to :{REDIRECT_PORT}",
            "  }",
            *(_render_tproxy(family, version) if udp else ()),
            "}",
        ]
    return "".join(f"{line}\n" for line in lines)


def _render_tproxy(family: str, version: int) -> list[str]:
    """Return the chains that lead datagrams to the listener with their destination as it was."""
    return [
        "  chain mark_udp {",
        "    type route hook output priority -150;",  # before DNS is redirected
        f"    {family} daddr {OWN_NETWORKS[version]} return",
        "    udp dport 53 return",
        f"    meta l4proto udp meta mark set {UDP_MARK:#x}",
        "  }",
        "  chain take_udp {",
        "    type filter hook prerouting priority -150;",
        f'    iifname "lo" meta mark {UDP_MARK:#x} meta l4proto udp tproxy to :{REDIRECT_PORT} accept',
        "  }",
    ]


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
