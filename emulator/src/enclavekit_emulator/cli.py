# SPDX-License-Identifier: Apache-2.0
"""`nitro-emu`: nitro-cli's commands on machines without Nitro. Parses, calls, maps errors."""

from __future__ import annotations

import argparse
import sys

from enclavekit_core.cli import run_command

from enclavekit_emulator.commands import console, inspect, lifecycle, run_enclave
from enclavekit_emulator.nitro_errors import NitroError

PROGRAM = "nitro-emu"


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Runs enclave images on machines without Nitro: nitro-cli's commands, JSON and exit codes. "
        "An emulated enclave is not confidential.",
    )
    subcommands = parser.add_subparsers(metavar="COMMAND", dest="command")
    run_enclave.add_parser(subcommands)
    lifecycle.add_parsers(subcommands)
    console.add_parser(subcommands)
    inspect.add_parsers(subcommands)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.command is None:
        parser.print_help()
        return 0

    def command() -> int:
        try:
            status: int = args.run(args)
        except NitroError as exc:
            # nitro-cli's own form, which scripts look for; all other errors are printed in ours
            print(exc, file=sys.stderr)
            return exc.exit_code
        return status

    return run_command(PROGRAM, command)
