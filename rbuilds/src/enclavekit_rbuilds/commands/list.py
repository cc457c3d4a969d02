# SPDX-License-Identifier: Apache-2.0
"""`rbuilds list`: the enclaves of this user, on which backend, and the network that each has."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING

from enclavekit_rbuilds.commands.enclave_arguments import add_backend_argument

if TYPE_CHECKING:
    from enclavekit_rbuilds.run.store import EndedEnclave

HELP = "list the running enclaves; with --all, also how the last ones ended"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print an array")
    parser.add_argument("--all", action="store_true", help="also those that have ended, with their app's exit status")
    add_backend_argument(parser)


def run(args: argparse.Namespace) -> int:
    from enclavekit_rbuilds.commands.run import describe_enclave
    from enclavekit_rbuilds.run.housekeeping import keep_house
    from enclavekit_rbuilds.run.proxies import describe_network
    from enclavekit_rbuilds.run.selection import list_running

    store = keep_house()
    known = {record.enclave.id: record for record in store.records() if record.enclave is not None}
    rows = []
    for _backend, enclave in list_running(args.backend):
        record = known.get(enclave.id)
        network: list[str] = []
        if record is not None:
            network = describe_network(record.plan, record.cid)
        image = record.plan.eif if record is not None else None
        rows.append({**describe_enclave(enclave), "image": image, "network": network})
    if args.all:
        rows += [
            {**describe_ended(ended), "image": None, "network": []}
            for ended in store.ended()
            if args.backend in (None, ended.enclave.backend)
        ]
    if args.json:
        json.dump(rows, sys.stdout, indent=2)
        print()
        return 0
    if not rows:
        print("no enclave is running" + (" or has ended" if args.all else ""), file=sys.stderr)
        return 0
    heads = ("NAME", "CID", "STATE", "MEMORY", "CPUS", "BACKEND", "CONFIDENTIAL", "ID")
    table = [heads]
    for row in rows:
        confidential = "yes" if row["confidential"] else "NO"
        values = (row["name"], row["cid"], row["state"], f"{row['memory_mib']} MiB", row["cpus"], row["backend"])
        table.append((*map(str, values), confidential, str(row["id"])))  # type: ignore[arg-type]  # eight, as heads
    widths = [max(len(line[column]) for line in table) for column in range(len(heads))]
    for index, line in enumerate(table):
        print("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())
        if index:
            row = rows[index - 1]
            words = row.get("words", [])
            for rule in (*row["network"], *words[:1]):  # type: ignore[misc,index]  # lists of texts
                print(f"  {rule}")
    return 0


def describe_ended(ended: EndedEnclave) -> dict[str, object]:
    """Return an enclave that is no more for machines; for people its state says the app's status."""
    from enclavekit_rbuilds.commands.run import describe_enclave

    return {
        **describe_enclave(ended.enclave),
        "state": "ENDED" if ended.status is None else f"ENDED ({ended.status})",
        "exit_status": ended.status,
        "ended_at": ended.ended_at,
        "words": list(ended.words),
    }
