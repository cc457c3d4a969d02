# SPDX-License-Identifier: Apache-2.0
"""The flag --framework-from, which several subcommands have."""

from __future__ import annotations

import argparse


def add_origin(parser: argparse._ActionsContainer) -> None:
    """Add the flag that says where Debian's packages come from."""
    parser.add_argument(
        "--framework-from",
        metavar="WHERE",
        help="where it comes from: apt (on this machine), container[:IMAGE] (apt in a Debian container), or "
        "archive:FILE@SHA256 (default: apt if it is here, else a container)",
    )
