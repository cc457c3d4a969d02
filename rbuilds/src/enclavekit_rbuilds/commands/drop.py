# SPDX-License-Identifier: Apache-2.0
"""`rbuilds drop`: end enclaves, and what rbuilds started beside them on this host."""

from __future__ import annotations

import argparse
import json
import sys

from enclavekit_rbuilds.commands.enclave_arguments import add_selection

HELP = "end an enclave and its proxies"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_selection(parser, with_all=True)
    parser.add_argument("--json", action="store_true", help="print what was ended, as an array")


def run(args: argparse.Namespace) -> int:
    from enclavekit_core.errors import EnclavekitError

    from enclavekit_rbuilds.run.housekeeping import keep_house, wait_for_supervisor
    from enclavekit_rbuilds.run.selection import list_running, select

    store = keep_house()
    wanted = list_running(args.backend) if args.all else [select(args.backend, args.enclave, recent=args.recent)]
    dropped, failed = [], None
    for backend, enclave in wanted:
        try:
            backend.terminate(enclave)
            wait_for_supervisor(store, enclave)
        except EnclavekitError as exc:
            if not args.all:
                raise
            # one that cannot be ended must not keep the others
            print(f"rbuilds: {exc}", file=sys.stderr)
            failed = exc
            continue
        dropped.append(enclave)
        if not args.json:
            print(f"{enclave.name}: ended ({enclave.backend}, CID {enclave.cid})")
    if args.json:
        rows = [{"name": each.name, "id": each.id, "cid": each.cid, "backend": each.backend} for each in dropped]
        json.dump(rows, sys.stdout, indent=2)
        print()
    elif not wanted:
        print("no enclave is running", file=sys.stderr)
    return failed.exit_code if failed is not None else 0
