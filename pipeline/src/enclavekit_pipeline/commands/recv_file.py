# SPDX-License-Identifier: Apache-2.0
"""`pipeline recv-file`: upstream's name for a copy of a file out of an enclave."""

from __future__ import annotations

import argparse

from enclavekit_pipeline.commands.cp import copy
from enclavekit_pipeline.commands.upstream_copy import add_upstream_flags

HELP = "copy a file out of an enclave (cp by its former name)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_upstream_flags(parser, "file")


def run(args: argparse.Namespace) -> int:
    return copy(args, args.cid, args.local, args.remote, into=False, parents=True)
