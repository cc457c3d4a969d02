# SPDX-License-Identifier: Apache-2.0
"""`pipeline jobs`: what runs detached, and what ended."""

from __future__ import annotations

import argparse
import asyncio
import json

from enclavekit_pipeline.commands.listing import age, shown, table
from enclavekit_pipeline.commands.target import add_target_flags, make_target

HELP = "list commands that were started with exec -d"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_target_flags(parser)
    parser.add_argument("--json", action="store_true", help="a JSON array instead of a table")
    parser.add_argument("cid", metavar="ENCLAVE", help="CID, name or id")


def run(args: argparse.Namespace) -> int:
    import msgspec

    from enclavekit_pipeline.host.job_client import list_jobs
    from enclavekit_pipeline.wire.job_messages import JobInfo, JobsRequest

    jobs = asyncio.run(list_jobs(make_target(args, args.cid), JobsRequest(system=args.system)))
    if args.json:
        print(json.dumps(msgspec.to_builtins(jobs), indent=2))
        return 0

    def state(job: JobInfo) -> str:
        return "runs" if job.ended is None else f"exit {job.ended.status}"

    rows = [
        (job.job, state(job), str(job.pid), age(job.age_s), str(job.written), shown(job.client), shown(job.command))
        for job in jobs
    ]
    print(table(("JOB", "STATE", "PID", "AGE", "BYTES", "CLIENT", "COMMAND"), rows))
    return 0
