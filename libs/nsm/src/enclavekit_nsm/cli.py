# SPDX-License-Identifier: Apache-2.0
"""Command `nsm`: ask the Nitro Secure Module from inside an enclave."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Mapping

from enclavekit_core.cli import run_command
from enclavekit_core.errors import ConfigError, InputError

from enclavekit_nsm.client import NsmClient
from enclavekit_nsm.messages import PCR_COUNT


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="nsm", description="Ask the Nitro Secure Module.")
    parser.add_argument("--device", metavar="PATH", help="default $ENCLAVEKIT_NSM, else /dev/nsm")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    describe = commands.add_parser("describe", help="versions, module id and which registers are locked")
    pcrs = commands.add_parser("pcrs", help="the platform configuration registers that are not zero")
    pcrs.add_argument("--all", action="store_true", help="zero ones too")
    for command in (describe, pcrs):
        command.add_argument("--json", action="store_true", help="for machines")
    attest = commands.add_parser("attest", help="an attestation document")
    for name in ("user-data", "nonce", "public-key"):
        attest.add_argument(f"--{name}", metavar="HEX", help="goes into the document")
    attest.add_argument("-o", "--output", metavar="FILE", help="default: standard output, binary")
    random = commands.add_parser("random", help="random bytes, in hex")
    random.add_argument("--binary", action="store_true", help="as they are")
    args = parser.parse_args(argv)
    return run_command("nsm", lambda: run(args))


def run(args: argparse.Namespace) -> int:
    with NsmClient.open(args.device) as nsm:
        match args.command:
            case "describe":
                print_values(dataclasses.asdict(nsm.describe_nsm()), as_json=args.json)
            case "pcrs":
                values = {f"PCR{index}": nsm.describe_pcr(index).data for index in range(PCR_COUNT)}
                shown = {name: value.hex() for name, value in values.items() if args.all or any(value)}
                print_values(shown, as_json=args.json)
            case "attest":
                inputs = [read_hex(args, name) for name in ("user_data", "nonce", "public_key")]
                write_binary(nsm.attestation(*inputs), args.output)
            case "random":
                data = nsm.get_random()
                if args.binary:
                    write_binary(data, None)
                else:
                    print(data.hex())
    return 0


def print_values(values: Mapping[str, object], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(values, indent=2))
        return
    width = max(map(len, values), default=0)
    for name, value in values.items():
        print(f"{name:<{width}}  {value}")


def read_hex(args: argparse.Namespace, name: str) -> bytes | None:
    text = getattr(args, name)
    try:
        return None if text is None else bytes.fromhex(text)
    except ValueError as exc:
        raise ConfigError(f"--{name.replace('_', '-')}", "", "it is not hexadecimal") from exc


def write_binary(data: bytes, path: str | None) -> None:
    if path is None:
        sys.stdout.buffer.write(data)
        return
    temporary = f"{path}.{os.getpid()}"
    try:
        with open(temporary, "wb") as out:
            out.write(data)
        os.replace(temporary, path)
    except OSError as exc:
        raise InputError("write", path, (exc.strerror or str(exc)).lower()) from exc
