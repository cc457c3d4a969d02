# SPDX-License-Identifier: Apache-2.0
"""Command line of ra-web-srv."""

from __future__ import annotations

import argparse
import os

from enclavekit_core.cli import run_command

PROGRAM = "ra-web-srv"


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROGRAM, description="Serve attestation documents, and hashes of files, over HTTPS. Flags win over FILE."
    )
    parser.add_argument("-c", "--config", metavar="FILE", help="configuration in YAML (default: none)")
    parser.add_argument("--listen", metavar="ADDRESS", help="tcp:// or unix:// (default: tcp://127.0.0.1:8443)")
    parser.add_argument("--roots", nargs="+", metavar="DIR", help="trees whose files may be attested (default: /data)")
    parser.add_argument("--nsm", metavar="PATH", help="the NSM (default: $ENCLAVEKIT_NSM, else /dev/nsm)")
    bus = parser.add_mutually_exclusive_group()
    bus.add_argument("--nats-url", metavar="URL", help="the bus (default: nats://127.0.0.1:4222)")
    bus.add_argument("--no-bus", action="store_true", help="serve generated files only")
    parser.add_argument(
        "--credentials",
        metavar="FILE",
        help="account on the bus (default: /run/nats/ra-web-srv.yaml if it is there, else none)",
    )
    parser.add_argument("--print-address", action="store_true", help="print the address once it is listened on")
    return parser


def _run(args: argparse.Namespace) -> None:
    # imported here: --help needs none of it, and the server's imports are a third of a second
    import msgspec
    from enclavekit_core import logs
    from enclavekit_core.bus import SERVICE_RA
    from enclavekit_core.bus_setup import credentials_path
    from enclavekit_core.config import load_config

    from enclavekit_ra_web_srv.config import Config

    config = load_config(Config, args.config) if args.config else Config()
    given = {name: getattr(args, name) for name in ("listen", "nsm", "nats_url", "credentials")}
    given["roots"] = tuple(args.roots) if args.roots else None
    config = msgspec.structs.replace(config, **{name: value for name, value in given.items() if value is not None})
    if args.no_bus:
        config = msgspec.structs.replace(config, bus=False)
    if config.credentials is None and os.path.exists(credentials_path(SERVICE_RA)):
        config = msgspec.structs.replace(config, credentials=credentials_path(SERVICE_RA))
    logs.configure()

    import asyncio

    import uvloop

    from enclavekit_ra_web_srv.server import serve

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(config, print_address=args.print_address))


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    return run_command(PROGRAM, lambda: _run(args))
