# SPDX-License-Identifier: Apache-2.0
"""`rbuilds console`: what rbuilds.sh calls: the commands and flags of the Rust framework's script."""

from __future__ import annotations

import argparse

HELP = "the flags and commands of the Rust framework's rbuilds.sh"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    # all words are read by console.flags, which knows `-??` and `-rn`: argparse must take none of them for its own
    parser.prefix_chars = "\0"
    parser.add_argument("words", nargs=argparse.REMAINDER, metavar="FLAG", help="see rbuilds console --help")


def run(args: argparse.Namespace) -> int:
    from enclavekit_rbuilds.cli import COMMANDS
    from enclavekit_rbuilds.console.driver import run_console

    return run_console(args.words, [name for name in COMMANDS if name != "console"])
