# SPDX-License-Identifier: Apache-2.0
"""`rbuilds evidence`: check that measurements, bill of materials and provenance belong to an image."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, replace

HELP = "check that an image's measurements, SBOM and provenance are about that image"
EXIT_CODES = """\
exit codes:
  0  all three files are about this image
  2  the image or a file is missing or malformed
  6  a file is about another image, or the image is damaged
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(dest="evidence_command", required=True, metavar="COMMAND")
    verify = commands.add_parser(
        "verify",
        help="compare the files beside an image with it",
        description="Compare NAME.pcr.json, NAME.cdx.json and NAME.intoto.json with NAME.eif. This finds a mix-up, "
        "not a forger: the files are not signed.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verify.add_argument("image", metavar="IMAGE")
    verify.add_argument("--pcrs", metavar="FILE", help="default: NAME.pcr.json beside the image")
    verify.add_argument("--sbom", metavar="FILE", help="default: NAME.cdx.json beside the image")
    verify.add_argument("--provenance", metavar="FILE", help="default: NAME.intoto.json beside the image")
    verify.add_argument("--json", action="store_true", help="print every check as JSON")


def run(args: argparse.Namespace) -> int:
    from enclavekit_core.errors import VerificationError

    from enclavekit_rbuilds.evidence.facts import evidence_paths, read_facts
    from enclavekit_rbuilds.evidence.verify import check_evidence

    named = {"pcrs": args.pcrs, "sbom": args.sbom, "provenance": args.provenance}
    paths = replace(evidence_paths(args.image), **{name: path for name, path in named.items() if path is not None})
    facts = read_facts(args.image)
    checks = check_evidence(facts, paths)
    failed = [check for check in checks if not check.holds]
    if args.json:
        json.dump(
            {"image": args.image, "sha256": facts.sha256, "holds": not failed, "checks": [asdict(c) for c in checks]},
            sys.stdout,
            indent=2,
        )
        print()
    if failed:
        others = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
        first = failed[0]
        reason = f"{first.file} states {first.what} {_short(first.stated)}, it is {_short(first.actual)}{others}"
        raise VerificationError(args.image, reason, first.stated, first.actual)
    if not args.json:
        print(f"{args.image}: its evidence is about this image ({len(checks)} checks)")
    return 0


def _short(value: object) -> str:
    text = str(value) if value is not None else "nothing"
    return text if len(text) <= 40 else f"{text[:37]}..."
