# SPDX-License-Identifier: Apache-2.0
"""What upstream's four names for copies have in common: their flags, and cp's beside them."""

from __future__ import annotations

import argparse

from enclavekit_pipeline.commands.cp import add_copy_flags
from enclavekit_pipeline.commands.target import add_target_flags

FLAGS = {"file": ("--localpath", "--remotepath"), "directory": ("--localdir", "--remotedir")}


def add_upstream_flags(parser: argparse.ArgumentParser, noun: str) -> None:
    """`noun` is of FLAGS."""
    add_target_flags(parser)
    add_copy_flags(parser)
    local, remote = FLAGS[noun]
    parser.add_argument("--cid", required=True, help="of the enclave")
    parser.add_argument(local, dest="local", required=True, metavar="PATH", help=f"the {noun} here")
    parser.add_argument(remote, dest="remote", required=True, metavar="PATH", help=f"the {noun} in the enclave")


def content_of(directory: str) -> str:
    """Return what means all that is in a directory, which goes into the other one and not below it."""
    return directory.rstrip("/") + "/."
