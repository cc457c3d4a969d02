# SPDX-License-Identifier: Apache-2.0
"""`pf-proxy learn`: from the decisions in a log to the rules that they took."""

from __future__ import annotations

import argparse
import sys
from typing import TextIO

from enclavekit_core.errors import InputError, describe_cause

HELP = "print the rules that the decisions in a log took"


def add_learn_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "learn",
        help=HELP,
        description=f"{HELP}, the refused ones too: of `pf-proxy run` with a policy, in JSON lines.",
    )
    parser.add_argument("log", metavar="LOG", nargs="?", default="-", help="a file (default: standard input)")
    parser.add_argument(
        "--format",
        choices=("network", "policy"),
        default="network",
        help="a section for enclave.yaml, or a policy file (default: %(default)s)",
    )
    parser.set_defaults(command=run_learn)


def run_learn(args: argparse.Namespace) -> int:
    """Print the rules. Raises InputError."""
    try:
        if args.log == "-":
            text = _learn(sys.stdin, args.format)
        else:
            with open(args.log, encoding="utf-8", errors="replace") as source:
                text = _learn(source, args.format)
    except OSError as exc:
        raise InputError("read", args.log, describe_cause(exc)) from exc
    sys.stdout.write(text)
    return 0


def _learn(lines: TextIO, form: str) -> str:
    try:
        from enclavekit_pf_proxy.policy.learning import Learner
        from enclavekit_pf_proxy.policy.log_events import read_events
    except ImportError as exc:
        raise InputError("learn", "rules", f"{exc.name} is not installed: enclavekit-pf-proxy[egress] has it") from exc
    learner, refused = Learner(), set()
    for found in read_events(lines):
        if isinstance(found, str):
            refused.add(found)
        else:
            learner.record(found)
    return learner.write_section(refused) if form == "network" else learner.write_policy()
