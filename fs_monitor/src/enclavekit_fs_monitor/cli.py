# SPDX-License-Identifier: Apache-2.0
"""Command line of fs-monitor."""

from __future__ import annotations

import argparse
import os

from enclavekit_core.bus import BUCKET_HASHES, SERVICE_FS_MONITOR
from enclavekit_core.bus_setup import credentials_path
from enclavekit_core.cli import run_command

PROGRAM = "fs-monitor"
DEFAULT_SOCKET = "unix:///run/fs-monitor.sock"


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Hash every file that enters a tree, and keep the hashes in NATS. Without a command it watches; "
        "flags win over FILE.",
    )
    parser.add_argument("-c", "--config", metavar="FILE", help="configuration in YAML (default: none)")
    parser.add_argument("-d", "--directory", metavar="DIR", action="append", help="a tree to watch, once for each (.)")
    parser.add_argument("-i", "--ignore-file", metavar="FILE", help="what not to hash, as .gitignore (.fsignore)")
    parser.add_argument("--nats-url", metavar="URLS", help="the bus, with commas between (nats://127.0.0.1:4222)")
    parser.add_argument("--kv-bucket-name", metavar="NAME", help=f"bucket for the hashes ({BUCKET_HASHES})")
    parser.add_argument("--records-bucket-name", metavar="NAME", help="bucket for size and time; '' for none")
    parser.add_argument("--replicas", metavar="N", type=int, help="copies of a bucket that is made (1)")
    parser.add_argument(
        "--credentials",
        metavar="FILE",
        help=f"account on the bus (default: {credentials_path(SERVICE_FS_MONITOR)} if it is there, else none)",
    )
    parser.add_argument("--socket", metavar="ADDRESS", help=f"where the commands ask ({DEFAULT_SOCKET})")
    parser.add_argument("--metrics-listen", metavar="ADDRESS", help="tcp:// for metrics and health (none)")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    status = commands.add_parser("status", help="what the running service says; exit code 1 while it is not ready")
    status.add_argument("--wait", action="store_true", help="until the first scan is on the bus")
    hashing = commands.add_parser("hash", help="SHA3-512 of a file, or digest of a directory, as the service knows it")
    hashing.add_argument("--wait", action="store_true", help="until it has one; of a file that is yet to come, too")
    hashing.add_argument("path", metavar="PATH")
    metrics = commands.add_parser("metrics", help="metrics in Prometheus's text format")
    for command in (status, hashing, metrics):
        # not the default: it would win over the same flag before the command
        command.add_argument("--socket", metavar="ADDRESS", default=argparse.SUPPRESS, help="where the service listens")
    for command in (status, hashing):
        command.add_argument("--json", action="store_true", help="for machines")
    return parser


def _ask(args: argparse.Namespace) -> int | None:
    from enclavekit_fs_monitor import control_client

    address = args.socket or DEFAULT_SOCKET
    if args.command == "status":
        return control_client.show_status(address, as_json=args.json, wait=args.wait)
    if args.command == "hash":
        control_client.show_hash(address, args.path, as_json=args.json, wait=args.wait)
    else:
        print(control_client.ask(address, "/metrics"), end="")
    return None


def _watch(args: argparse.Namespace) -> None:
    import asyncio
    import signal
    import sys

    # nats-py imports aiohttp for its WebSocket transport, which we do not use: 13 MB and a tenth of a second
    sys.modules.setdefault("aiohttp", None)  # type: ignore[arg-type]  # None makes the import fail, which it expects

    import msgspec
    from enclavekit_core import logs
    from enclavekit_core.config import load_config

    from enclavekit_fs_monitor.config import Config
    from enclavekit_fs_monitor.service import Monitor

    config = load_config(Config, args.config) if args.config else Config()
    names = set(Config.__struct_fields__) & set(vars(args))
    given = {name: getattr(args, name) for name in names} | {"roots": tuple(args.directory or ()) or None}
    config = msgspec.structs.replace(config, **{name: value for name, value in given.items() if value is not None})
    if config.credentials is None and os.path.exists(credentials_path(SERVICE_FS_MONITOR)):
        config = msgspec.structs.replace(config, credentials=credentials_path(SERVICE_FS_MONITOR))

    logs.configure()
    # a writer that opens a file while we ask for writers sends us this; it would end us (see file_hash.has_writer)
    signal.signal(signal.SIGIO, signal.SIG_IGN)

    async def monitor() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        await Monitor(config).run(stop)

    asyncio.run(monitor())


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    return run_command(PROGRAM, lambda: _ask(args) if args.command else _watch(args))
