# SPDX-License-Identifier: Apache-2.0
"""Command line of ra-web-srv."""

from __future__ import annotations

import argparse
import os

from enclavekit_core.cli import run_command

PROGRAM = "ra-web-srv"
CONFIG_PATH = "/etc/enclavekit/ra-web-srv.yaml"  # of an image, by its manifest
FLAGS = (
    *(
        "listen",
        "proxied_listen",
        "http_listen",
        "public_host",
        "client_ca",
        "nsm",
        "vrf_cipher_suite",
        "nats_url",
        "credentials",
    ),
    "insecure_dev_root",
)  # each is a key of the configuration


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROGRAM, description="Serve attestation documents, and hashes of files, over HTTPS. Flags win over FILE."
    )
    parser.add_argument(
        "-c", "--config", metavar="FILE", help=f"configuration in YAML (default: {CONFIG_PATH} if it is there)"
    )
    parser.add_argument("--listen", metavar="ADDRESS", help="tcp:// or unix:// (default: tcp://127.0.0.1:8443)")
    parser.add_argument(
        "--proxied-listen",
        metavar="ADDRESS",
        help="serve clients of a proxy that names them by the PROXY protocol, version 2 (default: nowhere)",
    )
    parser.add_argument(
        "--proxied-from", nargs="+", metavar="NETWORK", help="where such proxies are (default: 127.0.0.0/8 ::1/128)"
    )
    parser.add_argument("--roots", nargs="+", metavar="DIR", help="trees whose files may be attested (default: /data)")
    parser.add_argument("--nsm", metavar="PATH", help="the NSM (default: $ENCLAVEKIT_NSM, else /dev/nsm)")
    parser.add_argument("--http-listen", metavar="ADDRESS", help="send plain HTTP away from here (default: nowhere)")
    parser.add_argument("--public-host", metavar="HOST[:PORT]", help="to here: where clients reach --listen")
    parser.add_argument("--client-ca", metavar="FILE", help="routes about files need a certificate of one of these")
    parser.add_argument("--vrf-cipher-suite", metavar="NAME", help="(default: ECVRF-EDWARDS25519-SHA512-TAI)")
    parser.add_argument(
        "--insecure-dev-root", metavar="FILE", help="the /verify_* routes trust this root (PEM): for emulated enclaves"
    )
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

    path = args.config or (CONFIG_PATH if os.path.exists(CONFIG_PATH) else None)
    config = load_config(Config, path) if path else Config()
    given = {name: getattr(args, name) for name in FLAGS}
    for name in ("roots", "proxied_from"):
        given[name] = tuple(getattr(args, name)) if getattr(args, name) else None
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
