# SPDX-License-Identifier: Apache-2.0
"""The command `rbuilds`: find the subcommand, parse its flags, call it."""

from __future__ import annotations

import argparse
import sys
from importlib import import_module

from enclavekit_core.cli import run_command

PROGRAM = "rbuilds"
# subcommand -> module below `commands` with HELP, add_arguments(parser) and run(args) -> exit code; such a module
# imports what does the work inside run(), so that --help and wrong arguments answer at once
COMMANDS = {
    "init": "init",
    "build": "build",
    "lock": "lock",
    "framework": "framework",
    "kernel": "kernel",
    "kernel-check": "kernel_check",
    "schema": "schema",
    "cache": "cache",
    "run": "run",
    "list": "list",
    "attach": "attach",
    "wait": "wait",
    "drop": "drop",
    "doctor": "doctor",
    "explain": "explain",
    "reproduce": "reproduce",
    "evidence": "evidence",
    "console": "console",
}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=PROGRAM, description="Build enclave images, the same bytes every time.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, module_name in COMMANDS.items():
        module = import_module(f"enclavekit_rbuilds.commands.{module_name}")
        command = commands.add_parser(name, help=module.HELP, description=(module.__doc__ or "").partition(": ")[2])
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return parser


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    return run_command(PROGRAM, lambda: args.run(args))


if __name__ == "__main__":  # python -m, where no console script is installed
    sys.exit(main())
