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
from enclavekit_core.errors import ConfigError, InputError, describe_cause

from enclavekit_nsm.client import NsmClient
from enclavekit_nsm.messages import PCR_COUNT


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="nsm", description="Ask the Nitro Secure Module.")
    parser.add_argument("--device", metavar="PATH", help="default $ENCLAVEKIT_NSM, else /dev/nsm")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    describe = commands.add_parser("describe", help="versions, module id and which registers are locked")
    pcrs = commands.add_parser("pcrs", help="the platform configuration registers that are not zero")
    pcrs.add_argument("--all", action="store_true", help="zero ones too")
    attest = commands.add_parser("attest", help="an attestation document")
    for name in ("user-data", "nonce", "public-key"):
        attest.add_argument(f"--{name}", metavar="HEX", help="goes into the document")
    attest.add_argument("-o", "--output", metavar="FILE", help="default: standard output, binary")
    random = commands.add_parser("random", help="random bytes, in hex")
    random.add_argument("--binary", action="store_true", help="as they are")
    for command in (describe, pcrs, attest, random):
        command.add_argument("--json", action="store_true", help="for machines; binary values in hex")
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
                write_values({"document": nsm.attestation(*inputs)}, args.output, as_json=args.json)
            case "random":
                data = nsm.get_random()
                if args.binary or args.json:
                    write_values({"random": data}, None, as_json=args.json)
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


def write_values(values: dict[str, bytes], path: str | None, *, as_json: bool) -> None:
    """Write the value of the only entry as it is, or all as JSON, to a file or standard output."""
    if as_json:
        data = json.dumps({name: value.hex() for name, value in values.items()}, indent=2).encode() + b"\n"
    else:
        [data] = values.values()
    if path is None:
        sys.stdout.buffer.write(data)
    else:
        write_file(path, data)


def write_file(path: str, data: bytes) -> None:
    """Put `data` at `path`, all of it or nothing. Raises InputError."""
    import tempfile  # it takes a third of this command's start

    try:
        if os.path.exists(path) and not os.path.isfile(path):
            # a pipe or /dev/null: to be written to, not replaced
            with open(path, "wb") as out:
                out.write(data)
            return
        descriptor, temporary = tempfile.mkstemp(prefix=".nsm-", dir=os.path.dirname(path) or ".")
        try:
            with open(descriptor, "wb") as out:
                out.write(data)
            os.chmod(temporary, 0o644)  # nothing in it is secret, and its verifier is somebody else
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as exc:
        raise InputError("write", path, describe_cause(exc)) from exc
