# SPDX-License-Identifier: Apache-2.0
"""`pipeline exec`: run a command in an enclave."""

from __future__ import annotations

import argparse
import asyncio
import os

from enclavekit_core.errors import ConfigError

from enclavekit_pipeline.commands.target import (
    add_surrounding_flags,
    add_target_flags,
    make_target,
    parse_environment,
    parse_limits,
    seconds,
)

HELP = "run a command in an enclave"
USAGE = "pipeline exec [flags] ENCLAVE [[flags] --] COMMAND [ARG ...]"
EPILOG = """\
Everything after --, or else after ENCLAVE, is the command, word by word; no shell is involved unless you name one.
exit codes: the command's own; 128+n if signal n ended it; 255 if it could not be run at all.
With --timeout: 143 if it had to be ended, 137 if that took KILL, 124 if it then claimed to be done.

examples (with PIPELINE_EIF and PIPELINE_IDENTITY set):
  pipeline exec notes ls -l /data
  pipeline exec -i notes -- sh -c 'cat > /data/in' < local
  job=$(pipeline exec -d notes -- server --verbose)
"""
FAILURE_STATUS = 255  # as ssh: 0..254 belong to the command in the enclave
TAKES_COMMAND = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_target_flags(parser)
    parser.add_argument("-i", "--interactive", action="store_true", help="send standard input (default: it gets none)")
    parser.add_argument("-t", "--tty", action="store_true", help="give it a terminal")
    parser.add_argument("-d", "--detach", action="store_true", help="leave it running and print its job: see logs")
    add_surrounding_flags(parser)
    parser.add_argument("--timeout", type=seconds, metavar="S", help="end the command after S seconds (default: never)")
    parser.add_argument("cid", metavar="ENCLAVE", help="CID, name or id")


def run(args: argparse.Namespace) -> int:
    if not args.argv:
        raise ConfigError("exec", "", "it names no command")
    if args.argv[0].startswith("-") and hasattr(args, "bare_command"):
        raise ConfigError("exec", "", f"after ENCLAVE comes the command, or -- before it: {args.argv[0]} is neither")
    from enclavekit_pipeline.host.exec_client import run_exec, start_job
    from enclavekit_pipeline.host.terminal import describe_terminal
    from enclavekit_pipeline.wire.exec_messages import ExecRequest

    request = ExecRequest(
        argv=args.argv,
        stdin=args.interactive,
        environment=parse_environment(args.env, args.env_file, os.environ),
        directory=args.workdir,
        user=args.user,
        timeout_s=args.timeout,
        system=args.system,
        terminal=describe_terminal(os.environ.get("TERM", "")) if args.tty else None,
        detach=args.detach,
        limits=parse_limits(args.limit),
    )
    if args.detach:
        print(asyncio.run(start_job(make_target(args, args.cid), request)).job)
        return 0
    return asyncio.run(run_exec(make_target(args, args.cid), request))
