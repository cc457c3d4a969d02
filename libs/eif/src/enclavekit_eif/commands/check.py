# SPDX-License-Identifier: Apache-2.0
"""`eif check`: what nitro-cli, the hypervisor or the kernel would refuse; exit 6 if there is something."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from enclavekit_eif.commands.output import print_columns, print_json, print_text

HELP = "find what would keep an image from starting, with cause and cure"
EXIT_REFUSED = 6


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("image", metavar="IMAGE")
    parser.add_argument("--at", metavar="TIME", help="judge the certificate at this time (RFC 3339; default: now)")
    parser.add_argument("--json", action="store_true", help="for machines")


def run(args: argparse.Namespace) -> int:
    from enclavekit_eif.check import Severity, check_eif
    from enclavekit_eif.moment import parse_moment

    found = check_eif(args.image, at=parse_moment(args.at) if args.at else None)
    refused = any(finding.severity is Severity.ERROR for finding in found)
    if args.json:
        print_json({"Good": not refused, "Findings": [asdict(finding) for finding in found]})
    elif found:
        rows = []
        for finding in found:
            code = f" ({finding.code})" if finding.code else ""
            rows += [(finding.severity, finding.name, finding.text + code), ("", "", f"-> {finding.cure}")]
        print_columns(rows)
    else:
        print_text(f"{args.image}: nothing to find fault with")
    return EXIT_REFUSED if refused else 0
