# SPDX-License-Identifier: Apache-2.0
"""Command line of fs-monitor."""

from __future__ import annotations

import argparse
import os

from enclavekit_core.bus import SERVICE_FS_MONITOR
from enclavekit_core.bus_setup import credentials_path
from enclavekit_core.cli import run_command

from enclavekit_fs_monitor.config import Settings

PROGRAM = "fs-monitor"


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROGRAM, description="Hash every file that is closed after writing in a tree, and keep the hashes in NATS."
    )
    default = Settings()
    parser.add_argument("-d", "--directory", default=default.directory, help="tree to watch (default: %(default)s)")
    parser.add_argument("--nats-url", default=default.nats_url, help="the bus (default: %(default)s)")
    parser.add_argument(
        "--kv-bucket-name", default=default.kv_bucket_name, help="bucket for the hashes (default: %(default)s)"
    )
    parser.add_argument(
        "--credentials",
        metavar="FILE",
        help=f"account on the bus (default: {credentials_path(SERVICE_FS_MONITOR)} if it is there, else none)",
    )
    return parser


def settings_of(args: argparse.Namespace) -> Settings:
    credentials = args.credentials
    if credentials is None and os.path.exists(credentials_path(SERVICE_FS_MONITOR)):
        credentials = credentials_path(SERVICE_FS_MONITOR)
    return Settings(args.directory, args.nats_url, args.kv_bucket_name, credentials)


def _run(settings: Settings) -> None:
    import asyncio
    import signal
    import sys

    # nats-py imports aiohttp for its WebSocket transport, which we do not use: 13 MB and a tenth of a second
    sys.modules.setdefault("aiohttp", None)  # type: ignore[arg-type]  # None makes the import fail, which it expects

    from enclavekit_core import logs

    from enclavekit_fs_monitor.service import Monitor

    logs.configure()
    # a writer that opens a file while we ask for writers sends us this; it would end us (see file_hash.has_writer)
    signal.signal(signal.SIGIO, signal.SIG_IGN)

    async def monitor() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        await Monitor(settings).run(stop)

    asyncio.run(monitor())


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    return run_command(PROGRAM, lambda: _run(settings_of(args)))
