# SPDX-License-Identifier: Apache-2.0
"""`pipeline cp`: copy a file into or out of an enclave."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys

from enclavekit_core.errors import ConfigError

from enclavekit_pipeline.commands.target import add_target_flags, make_target, split_place

HELP = "copy a file into or out of an enclave"
TERMINATED = 128 + signal.SIGTERM


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_target_flags(parser)
    parser.add_argument("source", metavar="SRC", help="PATH, ENCLAVE:PATH, or - for standard input")
    parser.add_argument("target", metavar="DST", help="ENCLAVE:PATH, PATH, or - for standard output")


def run(args: argparse.Namespace) -> int:
    source, target = split_place(args.source), split_place(args.target)
    if (source is None) == (target is None):
        raise ConfigError("cp", "", "exactly one side must be ENCLAVE:PATH")
    from enclavekit_pipeline.host.copy_client import copy_in, copy_out

    # an exception, so that what is half-made is removed on the way out
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))
    if target is not None:
        cid, path = target
        asyncio.run(copy_in(make_target(args, cid), args.source, path, system=args.system))
    elif source is not None:
        cid, path = source
        asyncio.run(copy_out(make_target(args, cid), path, args.target, system=args.system))
    return 0
