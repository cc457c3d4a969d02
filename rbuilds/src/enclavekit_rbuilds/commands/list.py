# SPDX-License-Identifier: Apache-2.0
"""`rbuilds list`: the running enclaves of this user, on which backend, and the network that each has."""

from __future__ import annotations

import argparse
import json
import sys

from enclavekit_rbuilds.commands.enclave_arguments import add_backend_argument

HELP = "list the running enclaves"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print an array")
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
    if args.json:
        json.dump(rows, sys.stdout, indent=2)
        print()
        return 0
    if not rows:
        print("no enclave is running", file=sys.stderr)
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
            for rule in rows[index - 1]["network"]:  # type: ignore[attr-defined]  # a list of texts
                print(f"  {rule}")
    return 0
