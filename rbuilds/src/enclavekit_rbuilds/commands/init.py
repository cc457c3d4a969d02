# SPDX-License-Identifier: Apache-2.0
"""`rbuilds init`: an enclave.yaml to begin with; it loads and builds as it is."""

from __future__ import annotations

import argparse

HELP = "write a commented enclave.yaml"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", nargs="?", default=".", metavar="DIR", help="where to (default: here)")
    parser.add_argument("--name", help="the image's name (default: the directory's)")


def run(args: argparse.Namespace) -> int:
    from enclavekit_rbuilds.manifest.starter import write_starter

    path = write_starter(args.directory, args.name)
    print(f"{path}: edit it, then run: rbuilds build --config {path}")
    return 0
