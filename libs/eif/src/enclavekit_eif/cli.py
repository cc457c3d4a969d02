# SPDX-License-Identifier: Apache-2.0
"""The command `eif`: what is done with enclave images. Newer subcommands are modules of `commands`."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import stat
import sys
from typing import Any

from enclavekit_core.cli import run_command
from enclavekit_core.errors import ConfigError, InputError, describe_cause

from enclavekit_eif.commands.output import print_json

MAX_CUSTOM_METADATA_BYTES = 4096  # nitro-cli's limit for the file
COMMANDS = ("sign", "verify", "diff", "check", "size")  # modules of enclavekit_eif.commands
EPOCH_VARIABLE = "SOURCE_DATE_EPOCH"  # https://reproducible-builds.org/specs/source-date-epoch/


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="eif", description="Describe, build, sign, compare and take apart images (EIF)."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    describe = commands.add_parser("describe", help="print measurements and metadata, as nitro-cli describe-eif does")
    describe.add_argument("file", metavar="FILE")
    describe.set_defaults(run=run_describe)

    build = commands.add_parser("build", help="write an image from a kernel and ramdisks; print its measurements")
    build.add_argument("--kernel", required=True, metavar="FILE", help="bzImage, or Image for aarch64")
    build.add_argument("--cmdline", required=True, metavar="TEXT", help="kernel command line, measured as it is")
    build.add_argument(
        "--ramdisk", required=True, action="append", metavar="FILE", help="in boot order; repeat for more than one"
    )
    build.add_argument("--output", required=True, metavar="FILE")
    build.add_argument("--arch", choices=["x86_64", "aarch64"], default="x86_64")
    build.add_argument("--name", help="ImageName (default: file name of the kernel)")
    build.add_argument("--version", default="1.0", help="ImageVersion (default: %(default)s)")
    build.add_argument("--metadata", metavar="FILE", help="JSON of at most 4096 bytes for CustomMetadata")
    build.add_argument("--signing-certificate", metavar="FILE", help="PEM; needs --private-key")
    build.add_argument("--private-key", metavar="FILE", help="PEM, EC on P-256, P-384 or P-521")
    build.add_argument(
        "--build-time", metavar="TIME", help=f"RFC 3339 (default: {EPOCH_VARIABLE}, else 1970: builds have no clock)"
    )
    build.add_argument("--img-os", default="Linux", metavar="NAME", help="OperatingSystem (default: %(default)s)")
    build.add_argument(
        "--img-kernel", default="Unknown", metavar="VERSION", help="KernelVersion (default: %(default)s)"
    )
    build.set_defaults(run=run_build)

    extract = commands.add_parser("extract", help="write the sections of an image to files")
    extract.add_argument("file", metavar="FILE")
    extract.add_argument("-o", "--output", required=True, metavar="DIR", help="must not exist, or be empty")
    extract.add_argument("--tree", action="store_true", help="also unpack the ramdisks into DIR/root")
    extract.add_argument(
        "--same-owner", action="store_true", help="with --tree: keep owners and setuid bits (needs root)"
    )
    extract.set_defaults(run=run_extract)
    for name in COMMANDS:
        module = importlib.import_module(f"enclavekit_eif.commands.{name}")
        added = commands.add_parser(name, help=module.HELP, description=f"{module.HELP[0].upper()}{module.HELP[1:]}.")
        module.add_arguments(added)
        added.set_defaults(run=module.run)
    return parser


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    return run_command("eif", lambda: args.run(args))


def run_describe(args: argparse.Namespace) -> None:
    from enclavekit_eif.describe import describe_eif
    from enclavekit_eif.reader import read_eif

    with read_eif(args.file) as eif:
        print_json(describe_eif(eif))


def run_build(args: argparse.Namespace) -> None:
    from enclavekit_eif.metadata import make_metadata
    from enclavekit_eif.writer import write_eif

    if bool(args.signing_certificate) != bool(args.private_key):
        raise ConfigError("command line", "", "--signing-certificate and --private-key need each other")
    signer = None
    if args.private_key:
        from enclavekit_eif.signature import load_signer

        signer = load_signer(args.signing_certificate, args.private_key)
    metadata = make_metadata(
        args.name or os.path.basename(args.kernel),
        args.version,
        build_time=args.build_time or _default_build_time(),
        operating_system=args.img_os,
        kernel_version=args.img_kernel,
        custom=_read_custom_metadata(args.metadata) if args.metadata else None,
    )
    measurements = write_eif(
        args.output,
        kernel=args.kernel,
        cmdline=os.fsencode(args.cmdline),
        ramdisks=args.ramdisk,
        metadata=metadata,
        arch=args.arch,
        signer=signer,
    )
    print(f"Output file: {args.output}", file=sys.stderr)
    print_json({"Measurements": measurements.to_json()})


def run_extract(args: argparse.Namespace) -> None:
    from enclavekit_eif.reader import read_eif
    from enclavekit_eif.unpack import unpack_eif

    with read_eif(args.file) as eif:
        report = unpack_eif(eif, args.output, tree=args.tree, same_owner=args.same_owner)
    for skipped in report.skipped if report else ():
        print(f"eif: left out {skipped.name}: {skipped.reason}", file=sys.stderr)


def _default_build_time() -> str:
    from enclavekit_eif.metadata import DEFAULT_BUILD_TIME, build_time_of

    text = os.environ.get(EPOCH_VARIABLE)
    if text is None:
        return DEFAULT_BUILD_TIME
    try:
        return build_time_of(int(text))
    except (ValueError, OverflowError) as exc:
        raise ConfigError("environment", EPOCH_VARIABLE, f"{text!r} is not a number of seconds since 1970") from exc


def _read_custom_metadata(path: str) -> Any:
    what = f"metadata {path}"
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as source:
            if not stat.S_ISREG(os.fstat(source.fileno()).st_mode):
                raise InputError("read", what, "not a regular file")
            data = source.read(MAX_CUSTOM_METADATA_BYTES + 1)
    except OSError as exc:
        raise InputError("read", what, describe_cause(exc)) from exc
    if len(data) > MAX_CUSTOM_METADATA_BYTES:
        raise InputError("read", what, f"more than {MAX_CUSTOM_METADATA_BYTES} bytes")
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as exc:
        raise InputError("read", what, str(exc)) from exc
