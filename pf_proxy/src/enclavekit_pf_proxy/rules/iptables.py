# SPDX-License-Identifier: Apache-2.0
"""A rule set as a script for `iptables-restore --noflush`, in chains of its own, for kernels without nf_tables. Pure.

The chains of one of iptables' tables go in and out as one transaction; the jumps to them are the only rules that stand
in anybody else's chain. What is there already is read from `iptables-save`.
Source: iptables-restore(8), iptables-extensions(8).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from enclavekit_pf_proxy.rules.divert import OWN_MARK, Divert, Method, Origin, RuleSet

TABLES = ("nat", "mangle")
HOOKS = {Origin.OUTPUT: "OUTPUT", Origin.PREROUTING: "PREROUTING"}
CHAIN = re.compile(r":(\S+) ")
FAILED = re.compile(r"(?:line|Error occurred at line:) (\d+)")
PROGRAM = re.compile(r"^(?:ip6?tables\S*(?: v\S+ \(\w+\))?: )+")
DNS_PORT = 53
OWN = f"-m mark --mark {OWN_MARK:#x} -j RETURN"  # of xt_mark, which AWS's stock kernel does not have


def render_rules(rules: RuleSet, version: int, saved: Mapping[str, str]) -> str:
    """Return the script that puts the rules of one kind of IP in.

    Args: saved: what `iptables-save -t TABLE` says of each of TABLES.
    """
    wanted = {"nat": _nat(rules, version), "mangle": _mangle(rules, version)}
    return "".join(_transaction(rules.name, table, saved.get(table, ""), wanted[table]) for table in TABLES)


def render_removal(name: str, saved: Mapping[str, str]) -> str:
    """Return the script that takes everything of `name` out; empty if there is nothing."""
    return "".join(_transaction(name, table, saved.get(table, ""), {}) for table in TABLES)


def cause_of(stderr: str, script: str) -> str:
    """Return why iptables-restore failed on `script`: its own words, and the line that nobody else has seen."""
    first = next((line.strip() for line in stderr.splitlines() if line.strip()), "no message")
    words, place = PROGRAM.sub("", first), FAILED.search(stderr)
    number, lines = int(place[1]) if place else 0, script.splitlines()
    if not 1 <= number <= len(lines) or lines[number - 1].startswith("*"):
        return words  # which name the table themselves
    line = lines[number - 1]
    if line == "COMMIT":  # that a match or a target is missing, iptables-restore does not say
        table = next(other for other in reversed(lines[:number]) if other.startswith("*"))
        return f"the kernel does not take the rules of table {table[1:]}: it lacks a match or a target of them"
    return f"`{line}` failed" if FAILED.match(words) else f"{words}, at `{line}`"


Chains = dict[str, list[str]]
"""Chain -> the rules in it, without `-A CHAIN`. `NAME_output` is jumped to from OUTPUT, and so on."""


def _transaction(name: str, table: str, saved: str, chains: Chains) -> str:
    """Return what makes `chains` the only ones of ours in `table`; empty if it is to have none and has none."""
    lines = saved.splitlines()
    ours = re.compile(rf"{name}_(output|prerouting|(out|pre|in)\d+)")
    found = {match[1] for line in lines if (match := CHAIN.match(line)) and ours.fullmatch(match[1])}
    # a jump as iptables-save prints it, from a chain that is not ours
    jumps = [line for line in lines if line.startswith("-A ") and line.rpartition(" -j ")[2] in found]
    jumps = [line for line in jumps if line.split()[1] not in found]
    if not found and not chains:
        return ""
    script = [f"*{table}"]
    script += [f":{chain} - [0:0]" for chain in sorted(found | set(chains))]  # which empties one that is there
    script += [line.replace("-A", "-D", 1) for line in jumps]
    script += [f"-A {chain} {rule}" for chain, rules in chains.items() for rule in rules]
    for origin, hook in HOOKS.items():
        if (chain := f"{name}_{origin.value}") in chains:
            script.append(f"-I {hook} 1 -j {chain}")  # first: somebody's accept must not let it pass
    script += [f"-X {chain}" for chain in sorted(found - set(chains))]
    return "\n".join((*script, "COMMIT", ""))


def _nat(rules: RuleSet, version: int) -> Chains:
    chains: Chains = {}
    for origin in Origin:
        dns = origin is Origin.OUTPUT and rules.diverts_dns(version)
        diverts = rules.of(version, Method.REDIRECT, origin)
        if not diverts and not dns:
            continue
        main = chains[f"{rules.name}_{origin.value}"] = _head(rules)
        if dns and rules.dns is not None:
            target = f"-j REDIRECT --to-ports {rules.dns.port}"
            main += [f"-p {protocol} --dport {DNS_PORT} {target}" for protocol in ("udp", "tcp")]
        for number, divert in enumerate(diverts):
            target = _redirect_target(divert, version)
            _add(chains, main, f"{rules.name}_{origin.value[:3]}{number}", divert, version, [target])
    return chains


def _head(rules: RuleSet) -> list[str]:
    return [OWN] if rules.spares_own else []


def _mangle(rules: RuleSet, version: int) -> Chains:
    chains: Chains = {}
    output = rules.of(version, Method.TPROXY, Origin.OUTPUT)
    foreign = rules.of(version, Method.TPROXY, Origin.PREROUTING)
    mark = f"{rules.mark:#x}"
    if output:
        main = chains[f"{rules.name}_output"] = _head(rules)
        if rules.diverts_dns(version):
            main += [f"-p {protocol} --dport {DNS_PORT} -j RETURN" for protocol in ("udp", "tcp")]
        for number, divert in enumerate(output):
            _add(chains, main, f"{rules.name}_out{number}", divert, version, [f"-j MARK --set-mark {mark}"])
    if output or foreign:
        main = chains[f"{rules.name}_prerouting"] = _head(rules)
        for number, divert in enumerate(output):
            condition = f"-i lo -m mark --mark {mark} "
            _add(chains, main, f"{rules.name}_in{number}", divert, version, [_tproxy(divert, mark)], condition)
        for number, divert in enumerate(foreign):
            _add(chains, main, f"{rules.name}_pre{number}", divert, version, [_tproxy(divert, mark)], "! -i lo ")
    return chains


def _add(
    chains: Chains,
    main: list[str],
    chain: str,
    divert: Divert,
    version: int,
    targets: Sequence[str],
    condition: str = "",
) -> None:
    """Give a divert its chain, to which `main` leads."""
    protocol = divert.protocol.value
    main.append(f"{condition}-p {protocol} -j {chain}")
    rules = chains[chain] = [f"-d {network} -j RETURN" for network in divert.exceptions_of(version)]
    for place in _places(divert, version):
        rules += [f"-p {protocol} {place}{target}" for target in targets]


def _places(divert: Divert, version: int) -> Iterator[str]:
    """Yield one condition per network and range of ports: modules that take several need not be there."""
    for network in divert.networks_of(version) or (None,):
        for ports in divert.ports or (None,):
            words = f"-d {network} " if network is not None else ""
            yield words + (f"--dport {ports[0]}:{ports[1]} " if ports is not None else "")


def _redirect_target(divert: Divert, version: int) -> str:
    address, port = divert.address, divert.listen.port
    if address.is_unspecified or str(address) in ("127.0.0.1", "::1"):
        return f"-j REDIRECT --to-ports {port}"
    return f"-j DNAT --to-destination {f'[{address}]' if version == 6 else address}:{port}"


def _tproxy(divert: Divert, mark: str) -> str:
    where = "" if divert.address.is_unspecified else f" --on-ip {divert.address}"
    return f"-j TPROXY --on-port {divert.listen.port}{where} --tproxy-mark {mark}"
