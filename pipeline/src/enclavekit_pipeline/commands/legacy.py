# SPDX-License-Identifier: Apache-2.0
"""`pipeline --insecure-legacy-slc ...`: the Rust client's subcommands, spoken to a Rust listener.

The same names without the flag are commands of the attested channel.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from enclavekit_core.address import MIN_ENCLAVE_CID, VsockAddress, parse_cid
from enclavekit_core.errors import EnclavekitError, TransportError

from enclavekit_pipeline.commands.general import General, apply_config
from enclavekit_pipeline.commands.target import DEFAULT_CONNECT_TIMEOUT_S, DEFAULT_PORT, port_number, seconds

if TYPE_CHECKING:
    from enclavekit_pipeline.host.legacy_client import LegacyClient

RUN_FAILURE_STATUS = 255  # as exec: 0..254 belong to the command in the enclave
WARNING = "pipeline: warning: the old protocol: nothing is encrypted, and whoever answers may not be the enclave"


def parse_words(words: list[str], general: General) -> argparse.Namespace:
    args = build_parser(general).parse_args(words)
    args.module = sys.modules[__name__]
    args.argv = []
    return args


def build_parser(general: General) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pipeline --insecure-legacy-slc", description="Speak the Rust framework's protocol to its listener."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="run a command by the enclave's bash")
    run.add_argument("--command", dest="text", required=True, metavar="STR")
    run.add_argument("--no-wait", action="store_true", help="leave it running; nothing more is heard of it")
    added = [run]
    for name, suffix in (("send-file", "path"), ("recv-file", "path"), ("send-dir", "dir"), ("recv-dir", "dir")):
        copy = commands.add_parser(name, help=f"{name.split('-')[0]} a {'file' if suffix == 'path' else 'directory'}")
        copy.add_argument(f"--local{suffix}", dest="local", required=True, metavar="PATH")
        copy.add_argument(f"--remote{suffix}", dest="remote", required=True, metavar="PATH")
        added.append(copy)
    config = None
    if general.config is not None:
        from enclavekit_pipeline.host.config import load_upstream_config

        config = load_upstream_config(general.config)
    for each in added:
        each.add_argument("--cid", required=True, help="of the enclave")
        each.add_argument("--port", type=port_number, default=DEFAULT_PORT, help="vsock port (default: %(default)s)")
        each.add_argument("--connect-timeout", type=seconds, default=DEFAULT_CONNECT_TIMEOUT_S, metavar="S")
        if config is not None:
            apply_config(each, cid=config.cid, port=config.port)
    return parser


def run(args: argparse.Namespace) -> int:
    try:
        return _carry_out(args)
    except EnclavekitError as exc:
        if args.command != "run":
            raise
        print(f"pipeline: {exc}", file=sys.stderr)
        return RUN_FAILURE_STATUS


def _carry_out(args: argparse.Namespace) -> int:
    from enclavekit_pipeline.host.legacy_client import LegacyClient

    cid = parse_cid(args.cid)
    if cid < MIN_ENCLAVE_CID:
        raise TransportError("enter", f"CID {args.cid}", "it is not an enclave's")
    print(WARNING, file=sys.stderr)
    with LegacyClient(VsockAddress(cid, args.port), args.connect_timeout) as client:
        if args.command == "run":
            return _run(client, args)
        verbs: dict[str, Callable[[], int]] = {
            "send-file": lambda: client.send_file(args.local, args.remote),
            "recv-file": lambda: client.receive_file(args.remote, args.local),
            "send-dir": lambda: client.send_tree(args.local, args.remote),
            "recv-dir": lambda: client.receive_tree(args.remote, args.local),
        }
        verbs[args.command]()
        if args.command.startswith("send"):
            print("pipeline: sent; whether it arrived, the old protocol does not say", file=sys.stderr)
        return 0


def _run(client: LegacyClient, args: argparse.Namespace) -> int:
    result = client.run(args.text, wait=not args.no_wait)
    sys.stdout.write(result.stdout)
    sys.stdout.flush()
    sys.stderr.write(result.stderr)
    if result.rc is None:
        print("pipeline: a signal ended the command; which one, the old protocol does not say", file=sys.stderr)
        return RUN_FAILURE_STATUS
    return result.rc & 0xFF
