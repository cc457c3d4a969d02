# SPDX-License-Identifier: Apache-2.0
"""`pipeline exec`: run a command in an enclave."""

from __future__ import annotations

import argparse
import asyncio

from enclavekit_core.errors import ConfigError

from enclavekit_pipeline.commands.target import add_target_flags, make_target, seconds

HELP = "run a command in an enclave"
USAGE = "pipeline exec [flags] ENCLAVE [flags] -- COMMAND [ARG ...]"
EPILOG = """\
Everything after -- is the command, word by word; no shell is involved unless you name one.
exit codes: the command's own; 128+n if signal n ended it; 255 if it could not be run at all.
With --timeout: 143 if it had to be ended, 137 if that took KILL, 124 if it then claimed to be done.
"""
FAILURE_STATUS = 255  # as ssh: 0..254 belong to the command in the enclave
TAKES_COMMAND = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_target_flags(parser)
    parser.add_argument("-i", "--interactive", action="store_true", help="send our standard input; else /dev/null")
    parser.add_argument("-e", "--env", action="append", default=[], metavar="K=V", help="environment; repeatable")
    parser.add_argument("-w", "--workdir", metavar="DIR", help="working directory (default: /)")
    parser.add_argument("-u", "--user", metavar="USER", help="name or uid, with :group if wanted (default: root)")
    parser.add_argument("--timeout", type=seconds, metavar="S", help="end the command after S seconds")
    parser.add_argument("cid", metavar="ENCLAVE", help="CID, name or id")


def run(args: argparse.Namespace) -> int:
    if not args.argv:
        raise ConfigError("exec", "", "it names no command after --")
    environment = {}
    for setting in args.env:
        name, separator, value = setting.partition("=")
        if not name or not separator:
            raise ConfigError("--env", "", f"{setting!r} is not K=V")
        environment[name] = value
    from enclavekit_pipeline.host.exec_client import run_exec
    from enclavekit_pipeline.wire.exec_messages import ExecRequest

    request = ExecRequest(
        argv=args.argv,
        stdin=args.interactive,
        environment=environment,
        directory=args.workdir,
        user=args.user,
        timeout_s=args.timeout,
        system=args.system,
    )
    return asyncio.run(run_exec(make_target(args, args.cid), request))
