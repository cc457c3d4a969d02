# SPDX-License-Identifier: Apache-2.0
"""`rbuilds framework`: the enclave's own root, apart from any app: make it, see what it weighs, take it elsewhere."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from enclavekit_rbuilds.framework.origin import Origin

from enclavekit_rbuilds.commands.origin_argument import add_origin

HELP = "the enclave's own root: build, sizes, export, import"
SERVICES = ("attestation", "files", "pipeline", "network", "egress", "egress-iptables", "quic")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    build = actions.add_parser("build", help="make it and keep it in the cache, for builds to come")
    sizes = actions.add_parser("sizes", help="what each part of it takes, unpacked")
    export = actions.add_parser(
        "export", help="write it to one file, for hosts with neither apt nor a container engine"
    )
    for action in (build, sizes, export):
        _add_choice(action)
    export.add_argument("file", metavar="FILE", help="the archive to write (tar.zst)")
    imported = actions.add_parser("import", help="take such a file into the cache; builds then fetch nothing")
    imported.add_argument("file", metavar="FILE")
    imported.add_argument(
        "--sha256", metavar="HEX", required=True, help="what `export` printed; anything else is refused"
    )
    for action in (build, sizes, export, imported):
        action.add_argument("--json", action="store_true", help="print the result as JSON")
        action.add_argument("--quiet", "-q", action="store_true", help="no progress on stderr")


def _add_choice(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--services",
        metavar="LIST",
        help="what it is to run (default: all; also none, network, egress, egress-iptables)",
    )
    parser.add_argument("--arch", choices=("x86_64", "aarch64"), default="x86_64", help="default: x86_64")
    add_origin(parser)


def run(args: argparse.Namespace) -> int:
    actions = {"build": _build, "sizes": _sizes, "export": _export, "import": _import}
    return actions[args.action](args)


def _build(args: argparse.Namespace) -> int:
    from enclavekit_rbuilds.base.progress import Progress
    from enclavekit_rbuilds.framework.assemble import base_for

    progress = Progress(quiet=args.quiet)
    with progress.step("framework base"):
        base = base_for(args.arch, _services(args), progress, origin=_origin(args))
    total = sum(base.record.parts.values())
    if args.json:
        return _print_json({"root": base.root, "size": total, "origin": base.record.origin})
    print(f"{base.root}: {total / 1e6:.1f} MB, by {base.record.origin}")
    return 0


def _sizes(args: argparse.Namespace) -> int:
    from enclavekit_rbuilds.base.progress import Progress
    from enclavekit_rbuilds.framework.assemble import build_framework

    services = _services(args)
    progress = Progress(quiet=args.quiet)
    built = build_framework(None, args.arch, "zstd", progress, services=services, origin=_origin(args))
    rows = sorted(built.parts.items(), key=lambda item: (-item[1], item[0]))
    total = sum(built.parts.values())
    if args.json:
        return _print_json(
            {"services": sorted(services), "size": total, "packed": built.ramdisk.size, "parts": dict(rows)}
        )
    for part, size in rows:
        print(f"{size / 1e6:8.2f} MB  {part}")
    print(f"{total / 1e6:8.2f} MB  in all; {built.ramdisk.size / 1e6:.2f} MB packed")
    return 0


def _export(args: argparse.Namespace) -> int:
    from enclavekit_core.errors import InputError, describe_cause

    from enclavekit_rbuilds.base.progress import Progress
    from enclavekit_rbuilds.framework.archive import write_archive
    from enclavekit_rbuilds.framework.assemble import base_for

    target = os.path.abspath(args.file)
    if os.path.isdir(target) or not os.path.isdir(os.path.dirname(target)):
        raise InputError("write", args.file, "it is a directory" if os.path.isdir(target) else "no such directory")
    progress = Progress(quiet=args.quiet)
    base = base_for(args.arch, _services(args), progress, origin=_origin(args))
    temporary = ""
    try:
        with progress.step("framework archive"):
            descriptor, temporary = tempfile.mkstemp(
                prefix=f".{os.path.basename(target)}-", dir=os.path.dirname(target)
            )
            with open(descriptor, "wb") as out:
                digest = write_archive(base.root, base.record, out)
            os.chmod(temporary, 0o644)
            os.rename(temporary, target)
    except OSError as exc:
        raise InputError("write", args.file, describe_cause(exc)) from exc
    finally:
        if temporary and os.path.exists(temporary):
            os.unlink(temporary)
    if args.json:
        return _print_json({"file": args.file, "sha256": digest, "size": os.stat(target).st_size})
    print(f"{digest}  {args.file}")
    return 0


def _import(args: argparse.Namespace) -> int:
    from enclavekit_rbuilds.base.progress import Progress
    from enclavekit_rbuilds.framework.base_stage import import_base

    with Progress(quiet=args.quiet).step("framework import"):
        base, served = import_base(args.file, _sha256(args.sha256))
    if args.json:
        return _print_json({"root": base.root, "arch": base.record.arch, "services": served})
    wanted = " or ".join(",".join(services) or "none" for services in served)
    print(f"builds for {base.record.arch} with services {wanted} take it from now on, and fetch nothing for it")
    return 0


def _sha256(text: str) -> str:
    from enclavekit_core.errors import ConfigError

    if not re.fullmatch(r"[0-9a-f]{64}", text):
        raise ConfigError("--sha256", "", "it must be 64 hexadecimal digits in lower case")
    return text


def _services(args: argparse.Namespace) -> frozenset[str]:
    from enclavekit_core.errors import ConfigError

    from enclavekit_rbuilds.framework.closure import ALL_SERVICES

    if args.services is None:
        return ALL_SERVICES
    names = frozenset() if args.services == "none" else frozenset(args.services.split(","))
    if unknown := sorted(names - set(SERVICES)):
        raise ConfigError("--services", "", f"{unknown[0] or 'nothing'} is none of {', '.join(SERVICES)}")
    return names


def _origin(args: argparse.Namespace) -> Origin | None:
    from enclavekit_rbuilds.framework.origin import parse_origin

    return parse_origin(args.framework_from) if args.framework_from else None


def _print_json(value: object) -> int:
    json.dump(value, sys.stdout, indent=2)
    print()
    return 0
