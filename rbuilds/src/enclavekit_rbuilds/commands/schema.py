# SPDX-License-Identifier: Apache-2.0
"""`rbuilds schema`: the JSON schema of enclave.yaml, for editors."""

from __future__ import annotations

import argparse

HELP = "print the JSON schema of enclave.yaml"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """There are none."""


def run(args: argparse.Namespace) -> int:
    from enclavekit_rbuilds.manifest.schema import render_schema

    print(render_schema(), end="")
    return 0
