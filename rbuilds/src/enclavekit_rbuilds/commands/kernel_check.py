# SPDX-License-Identifier: Apache-2.0
"""`rbuilds kernel-check`: say what a kernel lacks for an enclave, and what each missing option costs."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from enclavekit_rbuilds.kernel.config import Config
    from enclavekit_rbuilds.kernel.rules import Lack

HELP = "say what a kernel lacks for an enclave, and what that costs"
EXIT_LACKS = 1
EXIT_CODES = """\
exit codes:
  0  nothing is missing that Nitro requires (services and hardening may lack something)
  1  it cannot boot on Nitro, or cannot attest there; what is missing is on standard output
  2  the file cannot be used
"""
TITLES = {
    "nitro": "required on Nitro",
    "service": "required by services or expected by apps",
    "hardening": "hardening",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog, parser.formatter_class = EXIT_CODES, argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "file", metavar="CONFIG|KERNEL", help="a .config, or a kernel image with its configuration inside or beside it"
    )
    parser.add_argument(
        "--module",
        metavar="NAME",
        action="append",
        default=[],
        help="a module that the image loads, e.g. nsm for AWS's nsm.ko; repeatable",
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(args: argparse.Namespace) -> int:
    from enclavekit_rbuilds.kernel.modules import module_name
    from enclavekit_rbuilds.kernel.rules import find_lacks

    config = _load(args.file)
    lacks = find_lacks(config, frozenset(module_name(name) for name in args.module))
    required = [lack for lack in lacks if lack.rule.grade == "nitro"]
    if args.json:
        json.dump(_document(config, lacks), sys.stdout, indent=2)
        print()
    else:
        _print(args.file, config, lacks)
    return EXIT_LACKS if required else 0


def _load(path: str) -> Config:
    from enclavekit_core.errors import InputError, describe_cause

    from enclavekit_rbuilds.kernel.config import load_config, read_config_of

    try:
        with open(path, "rb") as source:
            head = source.read(4096)
    except OSError as exc:
        raise InputError("read", path, describe_cause(exc)) from exc
    if b"\0" not in head:
        return load_config(path)
    config = read_config_of(path)
    if config is None:
        reason = "it was built without CONFIG_IKCONFIG, and there is no file with its configuration beside it"
        raise InputError("check kernel", path, f"{reason}: name that file instead")
    return config


def _document(config: Config, lacks: list[Lack]) -> dict[str, object]:
    return {
        "version": config.version,
        "nitro-capable": not any(lack.rule.grade == "nitro" for lack in lacks),
        "lacks": [
            {
                "grade": lack.rule.grade,
                "option": lack.rule.option,
                "wanted": lack.rule.wanted,
                "value": lack.value,
                "cost": lack.rule.cost,
            }
            for lack in lacks
        ],
    }


def _print(path: str, config: Config, lacks: list[Lack]) -> None:
    print(f"{path}: Linux {config.version or 'of unknown version'}")
    for grade, title in TITLES.items():
        found = [lack for lack in lacks if lack.rule.grade == grade]
        print(f"{title}:" if found else f"{title}: nothing is missing")
        for lack in found:
            print(f"  {lack.text}")
    if any(lack.rule.grade == "nitro" for lack in lacks):
        print("This kernel is for the emulator only.")
