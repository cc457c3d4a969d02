# SPDX-License-Identifier: Apache-2.0
"""`pipeline logs`: what a job has written."""

from __future__ import annotations

import argparse
import asyncio

from enclavekit_pipeline.commands.target import add_target_flags, make_target

HELP = "show what a job has written"
EPILOG = "The last MiB is kept, until 16 newer jobs of ours need its place. Both streams come out as they went in."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_target_flags(parser)
    parser.add_argument("-f", "--follow", action="store_true", help="go on with what it writes, until it ends")
    parser.add_argument("cid", metavar="ENCLAVE", help="CID, name or id")
    parser.add_argument("job", metavar="JOB", help="as exec -d printed it")


def run(args: argparse.Namespace) -> int:
    from enclavekit_pipeline.commands.listing import check_job
    from enclavekit_pipeline.host.job_client import show_logs
    from enclavekit_pipeline.wire.job_messages import LogsRequest

    request = LogsRequest(job=check_job(args.job), follow=args.follow, system=args.system)
    asyncio.run(show_logs(make_target(args, args.cid), request))
    return 0
