# SPDX-License-Identifier: Apache-2.0
"""`pipeline ping`: enter an enclave and say how long an answer takes."""

from __future__ import annotations

import argparse
import asyncio
import time

from enclavekit_pipeline.commands.target import add_target_flags, count, make_target

HELP = "enter an enclave, run nothing, say how long an answer takes"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_target_flags(parser)
    parser.add_argument("-c", "--count", type=count, default=3, metavar="N", help="ask N times (default: %(default)s)")
    parser.add_argument("enclave", metavar="ENCLAVE", help="CID, name or id")


def run(args: argparse.Namespace) -> int:
    asyncio.run(ping(args))
    return 0


async def ping(args: argparse.Namespace) -> None:
    from enclavekit_pipeline.host.session import connected

    target = make_target(args, args.enclave)
    begun = time.monotonic()
    async with connected(target) as session:
        print(f"attested and let in as {session.name} in {(time.monotonic() - begun) * 1000:.1f} ms")
        for _ in range(args.count):
            print(f"answer in {await session.ping() * 1000:.3f} ms", flush=True)
