# SPDX-License-Identifier: Apache-2.0
"""`pipeline kill`: signal a job or a process."""

from __future__ import annotations

import argparse
import asyncio
import signal

from enclavekit_core.errors import ConfigError

from enclavekit_pipeline.commands.target import add_target_flags, make_target

HELP = "signal a job, or a process in the app's root"
EPILOG = """\
examples (with PIPELINE_EIF and PIPELINE_IDENTITY set):
  pipeline kill notes j1             the job, with all that it has started
  pipeline kill -s HUP notes 42      one process, as ps lists it
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_target_flags(parser)
    parser.add_argument(
        "-s",
        "--signal",
        type=signal_number,
        default=signal.SIGTERM,
        metavar="SIG",
        help="name or number (default: TERM)",
    )
    parser.add_argument("cid", metavar="ENCLAVE", help="CID, name or id")
    parser.add_argument("what", metavar="JOB|PID", help="a job, with all that it has started, or one process")


def run(args: argparse.Namespace) -> int:
    from enclavekit_pipeline.host.job_client import send_kill
    from enclavekit_pipeline.wire.job_messages import JOB_ID, MAX_PID, KillRequest

    job = args.what if JOB_ID.fullmatch(args.what) else None
    pid = int(args.what) if args.what.isascii() and args.what.isdigit() and len(args.what) <= 8 else None
    if job is None and (pid is None or not 0 < pid <= MAX_PID):
        raise ConfigError("kill", "", f"{args.what!r} is neither a job (j1) nor a process number")
    request = KillRequest(job=job, pid=pid, signal=args.signal, system=args.system)
    asyncio.run(send_kill(make_target(args, args.cid), request))
    return 0


def signal_number(text: str) -> int:
    """Raises argparse.ArgumentTypeError."""
    name = text.upper().removeprefix("SIG")
    if text.isascii() and text.isdigit() and 0 < int(text) <= signal.SIGRTMAX:
        return int(text)
    try:
        return int(signal.Signals[f"SIG{name}"])
    except KeyError:
        raise argparse.ArgumentTypeError(f"{text!r} is no signal") from None
