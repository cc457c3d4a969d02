# SPDX-License-Identifier: Apache-2.0
"""`pipeline cp`: copy files and trees into or out of an enclave."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from typing import TYPE_CHECKING

from enclavekit_core.errors import ConfigError

from enclavekit_pipeline.commands.target import add_target_flags, make_target, split_place

if TYPE_CHECKING:
    from enclavekit_pipeline.host.copy_client import CopyOptions

HELP = "copy a file or a tree into or out of an enclave"
EPILOG = """\
A directory that exists takes the copy under its name; SRC/. means what is in SRC. Files appear whole or not at all.
exit codes: 1 if all went well but something was left out (it is named): special files, what cannot be read, links that
lead out of the tree.

examples (with PIPELINE_EIF and PIPELINE_IDENTITY set):
  pipeline cp model.bin notes:/data/                 a directory: the file keeps its name
  pipeline cp --delta site/. notes:/data/site        what is in site, what differs of it
  pipeline cp notes:/data/log - | less
"""
TERMINATED = 128 + signal.SIGTERM
LEFT_OUT = 1
STANDARD_STREAM = "-"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_copy_flags(parser)
    add_target_flags(parser)
    parser.add_argument("source", metavar="SRC", help="PATH, ENCLAVE:PATH, or - for standard input")
    parser.add_argument("target", metavar="DST", help="ENCLAVE:PATH, PATH, or - for standard output")


def add_copy_flags(parser: argparse.ArgumentParser) -> None:
    what = parser.add_argument_group("what is copied, and how")
    what.add_argument("-a", "--archive", action="store_true", help="keep owners, too; modes and times always are")
    what.add_argument(
        "--include",
        action="append",
        default=[],
        metavar="PATTERN",
        help="only what matches, a directory with all in it: a name, or with / a path; repeatable",
    )
    what.add_argument(
        "--exclude", action="append", default=[], metavar="PATTERN", help="leave out what matches; repeatable"
    )
    what.add_argument("--delta", action="store_true", help="send only what is not there and equal")
    what.add_argument(
        "--resume",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="go on with large files where a copy that was cut has ended (default)",
    )
    what.add_argument("--unsafe-links", action="store_true", help="keep links that lead out of the tree")
    what.add_argument("--json", action="store_true", help="events as JSON lines on standard output")


def run(args: argparse.Namespace) -> int:
    source, target = split_place(args.source), split_place(args.target)
    if (source is None) == (target is None):
        raise ConfigError("cp", "", "exactly one side must be ENCLAVE:/PATH, from the root there")
    if target is not None:
        enclave, path = target
        return copy(args, enclave, args.source, path, into=True)
    assert source is not None
    enclave, path = source
    return copy(args, enclave, args.target, path, into=False)


def copy(args: argparse.Namespace, enclave: str, local: str, remote: str, *, into: bool, parents: bool = False) -> int:
    """Copy between `local` and `remote` in `enclave`; the command line's part of it."""
    if args.json and not into and local == STANDARD_STREAM:
        raise ConfigError("--json", "", "standard output is what is copied to")
    from enclavekit_pipeline.host.copy_client import copy_in, copy_out
    from enclavekit_pipeline.host.copy_progress import choose_display

    # an exception, so that what is half-made is removed on the way out
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))
    whom = make_target(args, enclave)
    display = choose_display(as_json=args.json)
    options = copy_options(args, parents=parents)
    if into:
        asyncio.run(copy_in(whom, local, remote, options, display))
    else:
        asyncio.run(copy_out(whom, remote, local, options, display))
    return LEFT_OUT if display.left_out else 0


def copy_options(args: argparse.Namespace, *, parents: bool) -> CopyOptions:
    from enclavekit_pipeline.host.copy_client import CopyOptions

    return CopyOptions(
        archive=args.archive,
        delta=args.delta,
        resume=args.resume,
        unsafe_links=args.unsafe_links,
        include=tuple(args.include),
        exclude=tuple(args.exclude),
        parents=parents,
        system=args.system,
    )
