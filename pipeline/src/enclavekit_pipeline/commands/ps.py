# SPDX-License-Identifier: Apache-2.0
"""`pipeline ps`: the processes in an enclave."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys

from enclavekit_pipeline.commands.listing import age, shown, table
from enclavekit_pipeline.commands.target import add_target_flags, make_target

HELP = "list the processes in an enclave"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_target_flags(parser)
    parser.add_argument("--json", action="store_true", help="a JSON array instead of a table")
    parser.add_argument("cid", metavar="ENCLAVE", help="CID, name or id")


def run(args: argparse.Namespace) -> int:
    import msgspec

    from enclavekit_pipeline.host.job_client import list_processes
    from enclavekit_pipeline.wire.job_messages import PsRequest

    found, omitted = asyncio.run(list_processes(make_target(args, args.cid), PsRequest(system=args.system)))
    if args.json:
        print(json.dumps(msgspec.to_builtins(found), indent=2))
    else:
        rows = [
            (
                *(str(one.pid), str(one.parent), str(one.uid), shown(one.state), age(one.age_s)),
                *(f"{one.cpu_ms / 1000:.2f}", str(one.resident_kib), one.job or "-", shown(one.command)),
            )
            for one in found
        ]
        print(table(("PID", "PPID", "UID", "S", "AGE", "CPU", "RSS_KIB", "JOB", "COMMAND"), rows))
    if omitted:
        print(f"pipeline: {omitted} more are not shown", file=sys.stderr)
    return 0
