# SPDX-License-Identifier: Apache-2.0
"""Put the rules of an enclave into the kernel and take them out, by nft, each as one transaction."""

from __future__ import annotations

import os
from collections.abc import Sequence

from enclavekit_core.errors import CommandError, InputError
from enclavekit_core.nftables import cause_of

from enclavekit_rbuilds.base.command import run
from enclavekit_rbuilds.run.model import LaunchError, Publish
from enclavekit_rbuilds.run.programs import need_program
from enclavekit_rbuilds.run.rules import parse_listeners, render_removal, render_rules
from enclavekit_rbuilds.run.store import Store

NFT_TIMEOUT_S = 30.0


def put_rules(store: Store, cid: int, bind: str, rules: Sequence[Publish]) -> None:
    """Put the rules in. Raises InputError, LaunchError."""
    listening = _listeners()
    for rule in rules:
        for port in range(rule.first, rule.last + 1):
            if port in listening and port != rule.port:
                raise InputError("publish", str(rule), f"port {port} of this host is in use by a server of its own")
    _apply(store, cid, render_rules(cid, bind, rules), "put in")


def remove_rules(store: Store, cid: int) -> None:
    """Take the rules out; none there is fine. Raises InputError, LaunchError."""
    _apply(store, cid, render_removal(cid) + "\n", "take out")
    store.unlink(f"{cid}.nft")


def _apply(store: Store, cid: int, script: str, verb: str) -> None:
    nft = need_program("nft", "--publish needs it (package nftables)")
    path = store.path(f"{cid}.nft")
    with open(path, "w", encoding="ascii") as out:
        out.write(script)
    try:
        run([nft, "-f", path], f"{verb} nftables rules", timeout_s=NFT_TIMEOUT_S)
    except CommandError as exc:
        cause = cause_of(exc.stderr_tail)
        if os.geteuid() != 0:
            cause += "; it needs CAP_NET_ADMIN"
        raise LaunchError(verb, "nftables rules", cause) from exc


def _listeners() -> set[int]:
    found: set[int] = set()
    for name in ("tcp", "tcp6"):
        try:
            with open(f"/proc/self/net/{name}", encoding="ascii") as source:
                found |= parse_listeners(source.read())
        except FileNotFoundError:  # no IPv6 here
            continue
    return found
