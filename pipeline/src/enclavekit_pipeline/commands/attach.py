# SPDX-License-Identifier: Apache-2.0
"""`pipeline attach`: enter a job."""

from __future__ import annotations

import argparse
import asyncio

from enclavekit_pipeline.commands.target import add_target_flags, make_target

HELP = "enter a job: see what it writes, type what it reads"
EPILOG = """\
Input reaches jobs that were started with exec -d -i. Ctrl-C leaves the job, and it runs on; on a terminal (exec -d -t)
that key is the job's, and Ctrl-P Ctrl-Q leaves. Ends with the job's exit code if the job ends first.
"""
FAILURE_STATUS = 255  # as exec


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_target_flags(parser)
    parser.add_argument("--no-stdin", action="store_true", help="look on only: nothing typed here reaches it")
    parser.add_argument("cid", metavar="ENCLAVE", help="CID, name or id")
    parser.add_argument("job", metavar="JOB", help="as exec -d printed it")


def run(args: argparse.Namespace) -> int:
    from enclavekit_pipeline.commands.listing import check_job
    from enclavekit_pipeline.host.job_client import attach
    from enclavekit_pipeline.host.terminal import window_size
    from enclavekit_pipeline.wire.job_messages import AttachRequest

    request = AttachRequest(job=check_job(args.job), window=window_size(), system=args.system)
    return asyncio.run(attach(make_target(args, args.cid), request, stdin=not args.no_stdin))
