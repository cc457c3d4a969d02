# SPDX-License-Identifier: Apache-2.0
"""`rbuilds lock`: write what a build is made of into a file that `rbuilds build --locked` holds to."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile

from enclavekit_rbuilds.commands import build

HELP = "pin every input of a build in rbuilds.lock"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    build.add_arguments(parser)
    for action in parser._actions:  # the flags are build's, of which only this one means something else
        if action.dest == "output":
            action.help, action.metavar, action.default = "the lock to write (default: rbuilds.lock)", "FILE", None
        elif action.dest in ("dry_run", "locked", "lock"):
            action.help = argparse.SUPPRESS
    parser.add_argument(
        "--offline", action="store_true", help="pin the framework that the cache has; ask the mirror nothing"
    )


def run(args: argparse.Namespace) -> int:
    from enclavekit_core.errors import ConfigError, InputError, describe_cause

    from enclavekit_rbuilds.base.progress import Progress
    from enclavekit_rbuilds.lock.model import FILE_NAME, render_lock
    from enclavekit_rbuilds.lock.resolve import resolve_lock

    if args.locked or args.lock or args.dry_run:
        raise ConfigError("the command line", "", "--locked, --lock and --dry-run belong to rbuilds build")
    target = os.path.abspath(args.output or FILE_NAME)
    if os.path.isdir(target) or not os.path.isdir(os.path.dirname(target)):
        raise InputError("write", target, "it is a directory" if os.path.isdir(target) else "no such directory")
    args.output = args.output or FILE_NAME
    progress = Progress(quiet=args.quiet)
    lock = resolve_lock(build.request_from_args(args), progress, offline=args.offline)
    temporary = ""
    try:
        descriptor, temporary = tempfile.mkstemp(prefix=".rbuilds.lock-", dir=os.path.dirname(target))
        with open(descriptor, "w", encoding="utf-8") as out:
            out.write(render_lock(lock))
        os.chmod(temporary, 0o644)
        os.replace(temporary, target)
    except OSError as exc:
        raise InputError("write", target, describe_cause(exc)) from exc
    finally:
        if temporary and os.path.exists(temporary):
            os.unlink(temporary)
    if args.json:
        json.dump({"lock": args.output, "inputs": len(lock.inputs)}, sys.stdout)
        print()
    else:
        print(f"{args.output}: {len(lock.inputs)} inputs")
    return 0
