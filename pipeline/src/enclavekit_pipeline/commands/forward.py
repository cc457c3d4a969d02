# SPDX-License-Identifier: Apache-2.0
"""`pipeline forward`: sockets here that lead into an enclave, and sockets there that lead here."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
from typing import TYPE_CHECKING

from enclavekit_core.errors import ConfigError

from enclavekit_pipeline.commands.target import add_target_flags, make_target

if TYPE_CHECKING:
    from enclavekit_pipeline.host.client import Target
    from enclavekit_pipeline.host.forward_rules import Forward

HELP = "forward connections to and from sockets in an enclave"
USAGE = "pipeline forward [flags] [-L LISTEN=TARGET] ... [-R LISTEN=TARGET] ... ENCLAVE"
EPILOG = """\
LISTEN and TARGET are PORT, HOST:PORT (tcp:// in front if you like) or unix:PATH. A PORT alone is of 127.0.0.1; port 0
is any free one. ssh's [BIND:]PORT:HOST:PORT is taken, too. Paths in the enclave are the app's, and with --system the
framework's.
One line for each forward says what listens; it goes on until INT or TERM, or until the enclave is gone (exit code 3).

examples (with PIPELINE_EIF and PIPELINE_IDENTITY set):
  pipeline forward -L 8443=8443 notes                127.0.0.1:8443 here leads to 127.0.0.1:8443 there
  pipeline forward -L unix:ra.sock=8443 notes        the same behind a socket file
  pipeline forward -R unix:/run/db.sock=5432 notes   the enclave reaches a database here
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_target_flags(parser)
    parser.add_argument(
        "-L", dest="local", action="append", default=[], metavar="LISTEN=TARGET", help="listen here, connect there"
    )
    parser.add_argument(
        "-R", dest="reverse", action="append", default=[], metavar="LISTEN=TARGET", help="listen there, connect here"
    )
    parser.add_argument("cid", metavar="ENCLAVE", help="CID, name or id")


def run(args: argparse.Namespace) -> int:
    from enclavekit_pipeline.host.forward_rules import parse_forward

    forwards = [parse_forward(text, reverse=False) for text in args.local]
    forwards += [parse_forward(text, reverse=True) for text in args.reverse]
    if not forwards:
        raise ConfigError("forward", "", "it needs at least one -L or -R")
    return asyncio.run(run_forwards(make_target(args, args.cid), forwards, system=args.system))


async def run_forwards(target: Target, forwards: list[Forward], *, system: bool) -> int:
    """Forward until a signal asks to stop. Raises what opening them raises, and the reason if the enclave is gone."""
    from enclavekit_pipeline.host.forward_client import Forwarding
    from enclavekit_pipeline.host.session import connected

    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with connected(target) as session, contextlib.AsyncExitStack() as stack:
        forwarding = Forwarding(session)
        for forward in forwards:
            address = await stack.enter_async_context(forwarding.open(forward, system=system))
            side = "-R" if forward.reverse else "-L"
            print(f"{side} {address} -> {forward.target}", flush=True)
        stopped = asyncio.create_task(stop.wait())
        gone = asyncio.create_task(session.ended())
        try:
            await asyncio.wait({stopped, gone}, return_when=asyncio.FIRST_COMPLETED)
            if gone.done():
                raise gone.result()
            return 0
        finally:
            stopped.cancel()
            gone.cancel()
            await asyncio.gather(stopped, gone, return_exceptions=True)
