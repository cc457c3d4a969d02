# SPDX-License-Identifier: Apache-2.0
"""`rbuilds explain`: what one of nitro-cli's error numbers means, and what helps."""

from __future__ import annotations

import argparse
import json
import sys

HELP = "explain an error number of nitro-cli, such as E36"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("code", metavar="CODE", nargs="?", help="E36, or 36; without one, all of them")
    parser.add_argument("--json", action="store_true", help="print an array")


def run(args: argparse.Namespace) -> int:
    from enclavekit_core.errors import InputError
    from enclavekit_core.nitro_errors import NITRO_ERRORS, format_error_code, parse_error_code

    numbers = list(NITRO_ERRORS)
    if args.code is not None:
        number = parse_error_code(args.code)
        if number is None:
            raise InputError("explain", args.code, f"nitro-cli's numbers are E00 to E{max(NITRO_ERRORS)}")
        numbers = [number]
    if args.json:
        rows = [
            {"code": format_error_code(number), "title": text.title, "cause": text.cause, "cure": text.cure}
            for number, text in NITRO_ERRORS.items()
            if number in numbers
        ]
        json.dump(rows, sys.stdout, indent=2)
        print()
        return 0
    for number in numbers:
        text = NITRO_ERRORS[number]
        if args.code is None:
            print(f"{format_error_code(number)}  {text.title}: {text.cause}")
        else:
            print(f"{format_error_code(number)}  {text.title}\n  cause: {text.cause}\n  cure:  {text.cure}")
    return 0
