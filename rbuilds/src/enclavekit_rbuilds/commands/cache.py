# SPDX-License-Identifier: Apache-2.0
"""`rbuilds cache`: list or clear what builds keep to be faster the next time."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from enclavekit_rbuilds.base.cache_store import Entry

HELP = "list or clear what builds keep"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    for action, text in (
        ("list", "what there is, latest used first"),
        ("clear", "remove it; the next build remakes it"),
    ):
        one = actions.add_parser(action, help=text, description=text)
        one.add_argument("--json", action="store_true", help="print it as JSON")
        if action == "clear":
            one.add_argument(
                "--only", metavar="NAME", action="append", default=[], help="only these, e.g. app; repeatable"
            )


def run(args: argparse.Namespace) -> int:
    from enclavekit_rbuilds.base.cache import cache_root, sweep
    from enclavekit_rbuilds.base.cache_store import clear, list_entries

    if args.action == "list":
        entries = list_entries()
        if args.json:
            _print_json({"directory": cache_root(), "entries": [_document(entry) for entry in entries]})
        else:
            _print_table(entries)
        return 0
    sweep()
    gone, busy = clear(names=frozenset(args.only))
    freed = sum(entry.size for entry in gone)
    if args.json:
        _print_json({"removed": [_document(entry) for entry in gone], "in-use": [_document(entry) for entry in busy]})
    else:
        print(f"removed {len(gone)} entries, {freed / 1e6:.1f} MB, from {cache_root()}")
    for entry in busy:
        print(f"rbuilds: note: {entry.name}-{entry.key} stays: a build uses it", file=sys.stderr)
    return 0


def _print_table(entries: list[Entry]) -> None:
    import datetime

    print(f"{'NAME':<12} {'KEY':<24} {'MB':>9}  LAST USED")
    for entry in entries:
        used = datetime.datetime.fromtimestamp(entry.used_ns // 10**9, datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
        print(f"{entry.name:<12} {entry.key:<24} {entry.size / 1e6:9.1f}  {used}")


def _document(entry: Entry) -> dict[str, object]:
    return {"name": entry.name, "key": entry.key, "size": entry.size, "used_ns": entry.used_ns, "path": entry.path}


def _print_json(document: object) -> None:
    json.dump(document, sys.stdout, indent=2)
    print()
