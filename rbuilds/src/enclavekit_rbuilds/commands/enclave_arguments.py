# SPDX-License-Identifier: Apache-2.0
"""Flags that several commands about running enclaves share."""

from __future__ import annotations

import argparse

BACKENDS = ("nitro-cli", "nitro-emu")


def add_backend_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--backend", choices=BACKENDS, help="default: nitro-cli where the device is, else nitro-emu")


def add_selection(parser: argparse.ArgumentParser, *, with_all: bool) -> None:
    """Add NAME|ID|CID, --recent and, if wanted, --all: exactly one of them."""
    group = parser.add_mutually_exclusive_group(required=True)
    group.add_argument("enclave", nargs="?", metavar="NAME|ID|CID", help="which enclave")
    group.add_argument("--recent", action="store_true", help="the one that was started last")
    if with_all:
        group.add_argument("--all", action="store_true", help="every enclave of this user")
    add_backend_argument(parser)
