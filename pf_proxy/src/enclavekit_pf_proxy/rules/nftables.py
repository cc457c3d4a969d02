# SPDX-License-Identifier: Apache-2.0
"""A rule set as a script for `nft -f`, in a table of its own for each kind of IP. Pure.

    redirect_output, redirect_prerouting    change the destination, of a flow's first packet
    mark_output                             marks what TPROXY is to take, so that it is routed in again (see `routing`)
    tproxy_prerouting                       gives that, and what others send, to the listener

Source: nft(8).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from enclavekit_core.nftables import render_removal, render_target

from enclavekit_pf_proxy.rules.divert import OWN_MARK, Divert, Method, Origin, RuleSet

FAMILIES = {4: "ip", 6: "ip6"}
NAT_PRIORITY, MANGLE_PRIORITY = -100, -150  # of iptables' nat and mangle tables, whose places these are
DNS_PORT = 53


def render_rules(rules: RuleSet, versions: Sequence[int] = (4, 6)) -> str:
    """Return the script that puts the rules in, whatever was there of an earlier set of this name.

    Args: versions: the kinds of IP that the kernel knows.
    """
    parts = [render_removal((FAMILIES[version] for version in versions), rules.name)]
    for version in versions:
        chains = list(_chains(rules, version))
        if chains:
            parts += [f"table {FAMILIES[version]} {rules.name} {{", *chains, "}"]
    return "\n".join((*parts, ""))


def render_removal_of(name: str, versions: Sequence[int] = (4, 6)) -> str:
    """Return the script that takes the rules out; it succeeds, too, where there are none."""
    return render_removal((FAMILIES[version] for version in versions), name) + "\n"


def _chains(rules: RuleSet, version: int) -> Iterator[str]:
    for origin in Origin:
        lines = list(_redirects(rules, version, origin))
        if lines:
            yield _chain(rules, f"redirect_{origin.value}", "nat", origin.value, NAT_PRIORITY, lines)
    marked = rules.of(version, Method.TPROXY, Origin.OUTPUT)
    if marked:
        lines = [f"meta l4proto {{ tcp, udp }} th dport {DNS_PORT} return"] if rules.diverts_dns(version) else []
        lines += [f"{_match(divert, version)} meta mark set {rules.mark:#010x}" for divert in marked]
        yield _chain(rules, "mark_output", "route", "output", MANGLE_PRIORITY, lines)
    foreign = rules.of(version, Method.TPROXY, Origin.PREROUTING)
    lines = [f'iifname "lo" meta mark {rules.mark:#010x} {_take(divert, version)}' for divert in marked]
    lines += [f'iifname != "lo" {_take(divert, version, rules.mark)}' for divert in foreign]
    if lines:
        yield _chain(rules, "tproxy_prerouting", "filter", "prerouting", MANGLE_PRIORITY, lines)


def _chain(rules: RuleSet, name: str, kind: str, hook: str, priority: int, lines: Sequence[str]) -> str:
    head = [f"type {kind} hook {hook} priority {priority}; policy accept;"]
    if rules.spares_own:
        head.append(f"meta mark {OWN_MARK:#010x} return")
    return "\n".join((f"  chain {name} {{", *(f"    {line}" for line in (*head, *lines)), "  }"))


def _redirects(rules: RuleSet, version: int, origin: Origin) -> Iterator[str]:
    if origin is Origin.OUTPUT and rules.dns is not None and rules.diverts_dns(version):
        # the resolver's own address is no exception: its port may be another one
        yield f"meta l4proto {{ tcp, udp }} th dport {DNS_PORT} redirect to :{rules.dns.port}"
    for divert in rules.of(version, Method.REDIRECT, origin):
        target = f"redirect to :{divert.listen.port}"
        if divert.address.version == version:
            target = render_target(divert.address, divert.listen.port)
        yield f"{_match(divert, version)} {target}"


def _take(divert: Divert, version: int, mark: int = 0) -> str:
    """Return match and statement that give a packet to the listener."""
    address = divert.address
    where = f":{divert.listen.port}"
    if not address.is_unspecified:
        where = f"{address}{where}" if version == 4 else f"[{address}]{where}"
    marking = f" meta mark set {mark:#010x}" if mark else ""
    return f"{_match(divert, version)}{marking} tproxy to {where} accept"


def _match(divert: Divert, version: int) -> str:
    words = [f"meta l4proto {divert.protocol.value}"]
    family = FAMILIES[version]
    if networks := divert.networks_of(version):
        words.append(f"{family} daddr {_set(networks)}")
    if exceptions := divert.exceptions_of(version):
        words.append(f"{family} daddr != {_set(exceptions)}")
    if divert.ports:
        ranges = [str(first) if first == last else f"{first}-{last}" for first, last in divert.ports]
        words.append(f"th dport {_set(ranges)}")
    return " ".join(words)


def _set(values: Sequence[object]) -> str:
    return str(values[0]) if len(values) == 1 else f"{{ {', '.join(map(str, values))} }}"
