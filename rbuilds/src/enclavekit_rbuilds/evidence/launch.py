# SPDX-License-Identifier: Apache-2.0
"""Run a program under another umask, user, and number of CPUs: `python -m enclavekit_rbuilds.evidence.launch`.

A program of its own, because these are properties of a process that nobody can change for a child by its environment.
"""

from __future__ import annotations

import argparse
import os
import sys


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="launch", description=__doc__)
    parser.add_argument("--umask", type=lambda text: int(text, 8), metavar="OCTAL")
    parser.add_argument("--cpu", type=int, metavar="N", help="run on this CPU alone")
    parser.add_argument("--user", type=int, metavar="UID", help="become this user, and the group of the same number")
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE", help="set this for the program")
    parser.add_argument("program", nargs="+", metavar="WORD")
    args = parser.parse_args(argv)
    if args.umask is not None:
        os.umask(args.umask)
    if args.cpu is not None:
        os.sched_setaffinity(0, {args.cpu})
    if args.user is not None:
        os.setgroups([])
        os.setresgid(args.user, args.user, args.user)
        os.setresuid(args.user, args.user, args.user)
    os.environ.update(item.split("=", 1) for item in args.env)
    os.execvp(args.program[0], args.program)  # noqa: S606 - an argv list, from our own command line


if __name__ == "__main__":
    sys.exit(main())
