# SPDX-License-Identifier: Apache-2.0
"""`pipeline send-dir`: upstream's name for a copy of a directory into an enclave."""

from __future__ import annotations

import argparse

from enclavekit_pipeline.commands.cp import copy
from enclavekit_pipeline.commands.upstream_copy import add_upstream_flags, content_of

HELP = "copy a directory into an enclave (cp by its former name)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_upstream_flags(parser, "directory")


def run(args: argparse.Namespace) -> int:
    return copy(args, args.cid, content_of(args.local), args.remote, into=True, parents=True)
