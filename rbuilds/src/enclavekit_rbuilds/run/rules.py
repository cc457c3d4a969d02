# SPDX-License-Identifier: Apache-2.0
"""nftables rules of one enclave: host ports led to its ingress ports, in a table of its own. Pure.

One script is one transaction: all rules are in, or none. A proxy on a loopback address is reached from this machine
only, so only what this machine sends is led there; any other address is open to the outside, as is the proxy.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Sequence

from enclavekit_core import nftables
from enclavekit_core.errors import InputError
from enclavekit_core.nftables import render_target

from enclavekit_rbuilds.run.model import Ingress, Publish

PUBLISH = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?:(\d{1,5})", re.ASCII)
MAX_PORT = 65535


def parse_publish(text: str) -> Publish:
    """Parse `HOSTPORT[-HOSTPORT]:PORT`. Raises InputError."""
    found = PUBLISH.fullmatch(text)
    if found is None:
        raise InputError("use --publish", text, "it is not HOSTPORT[-HOSTPORT]:PORT, such as 443:8443")
    first, port = int(found[1]), int(found[3])
    last = int(found[2]) if found[2] else first
    if not (0 < first <= last <= MAX_PORT and 0 < port <= MAX_PORT):
        raise InputError("use --publish", text, f"ports are 1 to {MAX_PORT}, the lower one first")
    return Publish(first, last, port)


def check_publish(rules: Sequence[Publish], ingress: Iterable[Ingress]) -> None:
    """Refuse rules that lead nowhere or contradict each other. Raises InputError."""
    ports = {rule.port for rule in ingress}
    for index, rule in enumerate(rules):
        if rule.port not in ports:
            known = ", ".join(map(str, sorted(ports))) or "none"
            raise InputError("publish", str(rule), f"{rule.port} is no ingress port of the image; it has: {known}")
        for other in rules[:index]:
            if overlaps(rule, other):
                raise InputError("publish", str(rule), f"its host ports are those of {other}")


def overlaps(one: Publish, other: Publish) -> bool:
    return one.first <= other.last and other.first <= one.last


def check_bind(text: str) -> str:
    """Return the address if it can be bound to. Raises InputError."""
    try:
        return str(ipaddress.ip_address(text))
    except ValueError as exc:
        raise InputError("use --bind", text, "it is not an IP address") from exc


def table_of(cid: int) -> str:
    return f"enclavekit_{cid}"


def render_rules(cid: int, bind: str, rules: Sequence[Publish]) -> str:
    """Return the script that puts the rules in, whatever a crash left of them."""
    address = ipaddress.ip_address(bind)
    family = "ip" if address.version == 4 else "ip6"
    # what comes in from outside can only be meant for an address that the outside knows
    chains = ("output",) if address.is_loopback else ("prerouting", "output")
    condition = "fib daddr type local" if address.is_unspecified else f"{family} daddr {address}"
    lines = [render_removal(cid), f"table {family} {table_of(cid)} {{"]
    for chain in chains:
        lines += [f"  chain {chain} {{", f"    type nat hook {chain} priority -100; policy accept;"]
        for rule in rules:
            ports = f"{rule.first}" if rule.first == rule.last else f"{rule.first}-{rule.last}"
            lines.append(f"    {condition} tcp dport {ports} {render_target(address, rule.port)}")
        lines.append("  }")
    return "\n".join((*lines, "}", ""))


def render_removal(cid: int) -> str:
    """Return the script that takes the table out; it succeeds, too, where there is none."""
    return nftables.render_removal(("ip", "ip6"), table_of(cid))


def parse_listeners(text: str) -> set[int]:
    """Return the ports in LISTEN state of one /proc/net/tcp or tcp6. Source: proc(5)."""
    ports = set()
    for line in text.splitlines()[1:]:
        fields = line.split()
        if len(fields) > 3 and fields[3] == "0A":
            ports.add(int(fields[1].rpartition(":")[2], 16))
    return ports
