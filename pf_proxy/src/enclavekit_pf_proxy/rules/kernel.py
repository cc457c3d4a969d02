# SPDX-License-Identifier: Apache-2.0
"""Puts a rule set into the kernel and takes it out, in the language that this kernel knows.

With nf_tables it is one transaction. With iptables there is one for each of its tables and kinds of IP; if one fails,
what those before it put in is taken out again.
"""

from __future__ import annotations

import errno
import os
import shutil
import socket
import struct
import subprocess
from collections.abc import Callable, Sequence

from enclavekit_core.errors import EnclavekitError, InputError, RemoteProtocolError, describe_cause
from enclavekit_core.nftables import cause_of

from enclavekit_pf_proxy.network import rtnetlink
from enclavekit_pf_proxy.network.routing import add_mark_routing, ip_versions, remove_mark_routing
from enclavekit_pf_proxy.rules import iptables, nftables
from enclavekit_pf_proxy.rules.divert import Backend, RuleSet

TIMEOUT_S = 30.0
SEARCH = "/usr/sbin:/sbin"  # where these programs are, and not every PATH leads
NETLINK_NETFILTER = 12
NFT_GETGEN = struct.Struct("=IHHIIBBH").pack(20, 10 << 8 | 16, 0x5, 1, 0, 0, 0, 0)
"""nlmsghdr and nfgenmsg: nf_tables' generation, which every kernel with it answers (nfnetlink.h, nf_tables.h)."""


class RulesError(EnclavekitError):
    """Rules that could not be put in or taken out (exit 5)."""

    exit_code = 5

    def __init__(self, verb: str, name: str, cause: str) -> None:
        """`name` is the rule set's."""
        if os.geteuid():
            cause += "; it needs CAP_NET_ADMIN"
        super().__init__(f"cannot {verb} rules {name}: {cause}")


def has_nf_tables() -> bool:
    """Say whether this kernel knows nf_tables; yes if it does not let us ask, so that nft says that."""
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER) as sock:
            sock.settimeout(TIMEOUT_S)
            sock.sendto(NFT_GETGEN, (0, 0))
            code = rtnetlink.decode_ack(sock.recv(4096))
    except OSError:
        return False
    except RemoteProtocolError:
        return True  # the generation itself
    return code in (0, errno.EPERM)


def choose_backend(wanted: Backend) -> Backend:
    """Return which of the two it is. Raises InputError if nothing can be had."""
    if wanted is not Backend.IPTABLES and _find("nft") and (wanted is Backend.NFT or has_nf_tables()):
        return Backend.NFT
    if wanted is Backend.NFT:
        raise InputError("find program", "nft", "it is not installed")
    if _iptables_program("restore", 4) is None:
        if _find("nft") and wanted is Backend.AUTO:
            raise InputError("find program", "iptables-restore", "it is not installed, and the kernel has no nf_tables")
        raise InputError("find program", "nft or iptables-restore", "neither is installed")
    return Backend.IPTABLES


def render(rules: RuleSet, backend: Backend) -> str:
    """Return the scripts that `apply` would run, one behind the other."""
    if backend is Backend.NFT:
        return nftables.render_rules(rules, ip_versions())
    return "".join(
        f"# {_iptables_name('restore', version)} --noflush\n{iptables.render_rules(rules, version, _saved(version))}"
        for version in _iptables_versions()
    )


def apply(rules: RuleSet, backend: Backend) -> None:
    """Have exactly these rules in, whatever an earlier set of this name was. Raises RulesError, TransportError."""
    if rules.uses_tproxy:
        add_mark_routing(rules.mark)  # before the rules: nothing is marked yet
    try:
        if backend is Backend.NFT:
            _run_nft(nftables.render_rules(rules, ip_versions()), "apply", rules.name)
        else:
            _run_iptables("apply", rules.name, lambda *which: iptables.render_rules(rules, *which))
    except EnclavekitError:
        if rules.uses_tproxy and backend is Backend.IPTABLES:
            remove_mark_routing(rules.mark)
        raise
    if not rules.uses_tproxy:
        remove_mark_routing(rules.mark)  # of an earlier set


def remove(name: str, backend: Backend = Backend.AUTO) -> None:
    """Take out everything of this name; none there is fine. Raises RulesError, TransportError.

    Args: backend: which put it in; AUTO: nobody knows, so look at both.
    """
    if backend is Backend.NFT or (backend is Backend.AUTO and _find("nft") and has_nf_tables()):
        _run_nft(nftables.render_removal_of(name, ip_versions()), "remove", name)
    if backend is not Backend.NFT and _iptables_program("restore", 4) is not None:
        _run_iptables("remove", name, lambda _version, saved: iptables.render_removal(name, saved))
    remove_mark_routing(RuleSet(name=name).mark)


Render = Callable[[int, "dict[str, str]"], str]


def _run_iptables(verb: str, name: str, render_one: Render) -> None:
    done: list[int] = []
    try:
        for version in _iptables_versions():
            script = render_one(version, _saved(version))
            if script:
                # several transactions: what a failed one leaves half-made is taken out below
                done.append(version)
                _run([_need_iptables("restore", version), "--noflush"], script, verb, name)
    except EnclavekitError:
        if verb == "apply":
            for version in done:
                script = iptables.render_removal(name, _saved(version))
                if script:
                    _run([_need_iptables("restore", version), "--noflush"], script, "remove", name)
        raise


def _saved(version: int) -> dict[str, str]:
    program = _iptables_program("save", version)
    if program is None:
        return {}
    found = {}
    for table in iptables.TABLES:
        # what iptables has not been asked for yet is not there: no error
        done = subprocess.run([program, "-t", table], capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
        found[table] = done.stdout if done.returncode == 0 else ""
    return found


def _iptables_versions() -> Sequence[int]:
    return [version for version in ip_versions() if _iptables_program("restore", version) is not None]


def _iptables_name(verb: str, version: int) -> str:
    return f"{'iptables' if version == 4 else 'ip6tables'}-{verb}"


def _iptables_program(verb: str, version: int) -> str | None:
    """Return the program; where there are two, not the one that speaks nf_tables to a kernel without."""
    plain = _iptables_name(verb, version)
    legacy = plain.replace(f"-{verb}", f"-legacy-{verb}")
    return _first(plain, legacy) if has_nf_tables() else _first(legacy, plain)


def _need_iptables(verb: str, version: int) -> str:
    found = _iptables_program(verb, version)
    if found is None:
        raise InputError("find program", _iptables_name(verb, version), "it is not installed")
    return found


def _run_nft(script: str, verb: str, name: str) -> None:
    program = _find("nft")
    if program is None:
        raise InputError("find program", "nft", "it is not installed")
    _run([program, "-f", "-"], script, verb, name)


def _run(argv: Sequence[str], script: str, verb: str, name: str) -> None:
    try:
        done = subprocess.run(argv, input=script, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise RulesError(verb, name, f"{argv[0]}: {describe_cause(exc)}") from exc
    if done.returncode:
        raise RulesError(verb, name, cause_of(done.stderr))


def _first(*programs: str) -> str | None:
    return next((found for program in programs if (found := _find(program))), None)


def _find(program: str) -> str | None:
    return shutil.which(program, path=f"{os.environ.get('PATH', os.defpath)}:{SEARCH}")
