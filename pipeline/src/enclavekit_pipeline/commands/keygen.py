# SPDX-License-Identifier: Apache-2.0
"""`pipeline keygen`: make a caller's key."""

from __future__ import annotations

import argparse

HELP = "make a key, and the certificate that goes into an image"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--name", required=True, metavar="NAME", help="what the enclave's list and logs call the holder"
    )
    parser.add_argument(
        "-o",
        "--output",
        default=".",
        metavar="DIR",
        help="directory for NAME.key and NAME.crt (default: the current one)",
    )


def run(args: argparse.Namespace) -> int:
    from enclavekit_pipeline.host.identity import generate

    key, certificate = generate(args.name, args.output)
    print(f"key          {key}  (keep it)\ncertificate  {certificate}  (goes into images: rbuilds build --authorize)")
    return 0
