# SPDX-License-Identifier: Apache-2.0
"""`eif diff`: where two images differ; exit 1 if they do."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from enclavekit_eif.commands.output import print_json, print_text

HELP = "say where two images differ: section, member, field (exit 1 if they do)"
EXIT_DIFFERENT = 1  # as diff(1) has it


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("left", metavar="A")
    parser.add_argument("right", metavar="B")
    parser.add_argument("--json", action="store_true", help="for machines")


def run(args: argparse.Namespace) -> int:
    from enclavekit_eif.diff import diff_eifs, render_difference

    found = diff_eifs(args.left, args.right)
    if args.json:
        print_json({"Equal": not found, "Differences": [asdict(difference) for difference in found]})
    else:
        for difference in found:
            print_text(render_difference(difference))
    return EXIT_DIFFERENT if found else 0
