# SPDX-License-Identifier: Apache-2.0
"""`pipeline shell`: a login shell in an enclave."""

from __future__ import annotations

import argparse
import asyncio
import os

from enclavekit_pipeline.commands.target import (
    add_surrounding_flags,
    add_target_flags,
    make_target,
    parse_environment,
    parse_limits,
)

HELP = "open a shell in an enclave"
EPILOG = """\
It is the login shell of the app's root and user, or sh; on a terminal if we have one, else it reads commands from our
standard input. Exit codes as with exec.
"""
FAILURE_STATUS = 255  # as exec


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_target_flags(parser)
    add_surrounding_flags(parser)
    parser.add_argument("cid", metavar="ENCLAVE", help="CID, name or id")


def run(args: argparse.Namespace) -> int:
    from enclavekit_pipeline.host.exec_client import run_exec
    from enclavekit_pipeline.host.terminal import STDIN, describe_terminal
    from enclavekit_pipeline.wire.exec_messages import ShellRequest

    request = ShellRequest(
        environment=parse_environment(args.env, args.env_file, os.environ),
        directory=args.workdir,
        user=args.user,
        system=args.system,
        terminal=describe_terminal(os.environ.get("TERM", "")) if os.isatty(STDIN) else None,
        limits=parse_limits(args.limit),
    )
    return asyncio.run(run_exec(make_target(args, args.cid), request))
