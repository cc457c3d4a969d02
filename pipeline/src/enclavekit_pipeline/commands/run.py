# SPDX-License-Identifier: Apache-2.0
"""`pipeline run`: upstream's name for exec through a shell."""

from __future__ import annotations

import argparse
import asyncio

from enclavekit_pipeline.commands.target import add_target_flags, make_target

HELP = "run a line of shell in an enclave (exec by its old name)"
EPILOG = """\
The line is for bash where the app has one, else for sh. Its output and exit code are the line's own. Prefer exec, which
needs no shell.
"""
FAILURE_STATUS = 255  # as exec
# the line is an argument, never part of the script: nothing in it can change what surrounds it
SCRIPT = 'if command -v bash >/dev/null 2>&1; then exec bash -c "$1"; else exec sh -c "$1"; fi'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_target_flags(parser)
    parser.add_argument("--cid", required=True, metavar="ENCLAVE", help="CID, name or id")
    parser.add_argument("--command", required=True, dest="line", metavar="LINE", help="what the shell is to run")
    parser.add_argument("--no-wait", action="store_true", help="leave it running and print its job: see logs")


def run(args: argparse.Namespace) -> int:
    from enclavekit_pipeline.host.exec_client import run_exec, start_job
    from enclavekit_pipeline.wire.exec_messages import ExecRequest

    request = ExecRequest(argv=["sh", "-c", SCRIPT, "sh", args.line], detach=args.no_wait, system=args.system)
    target = make_target(args, args.cid)
    if args.no_wait:
        print(asyncio.run(start_job(target, request)).job)
        return 0
    return asyncio.run(run_exec(target, request))
