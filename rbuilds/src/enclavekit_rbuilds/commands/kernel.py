# SPDX-License-Identifier: Apache-2.0
"""`rbuilds kernel`: compile the kernel of an enclave from source, or say what a kernel lacks for one."""

from __future__ import annotations

import argparse
import signal
import sys
from typing import TYPE_CHECKING

from enclavekit_rbuilds.commands import kernel_check

if TYPE_CHECKING:
    from enclavekit_rbuilds.kernel.make import KernelRequest

HELP = "compile the kernel of an enclave, or say what a kernel lacks"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    text = "compile a kernel for Nitro from source; builds then take it with --kernel-source made"
    make = actions.add_parser("make", help=text, description=text)
    make.add_argument(
        "--source",
        metavar="URL|FILE|debian",
        default="debian",
        help="a tarball by its https address (with --sha256) or on disk, or Debian's package of Linux 6.12 (default)",
    )
    make.add_argument("--sha256", metavar="HEX", help="of the tarball, or of Debian's package; refuse any other")
    make.add_argument("--version", metavar="X.Y.Z", help="refuse a source of any other version")
    make.add_argument(
        "--config",
        metavar="FRAGMENT",
        action="append",
        default=[],
        help="a file with more options, which win over ours; repeatable",
    )
    make.add_argument("--output", "-o", metavar="DIR", help="write bzImage, bzImage.config and kernel.json there too")
    make.add_argument("--jobs", "-j", metavar="N", type=int, help="default: one per processor")
    make.add_argument(
        "--in-container",
        metavar="ENGINE",
        choices=("docker", "podman", "buildah"),
        help="compile in a Debian container (ENCLAVEKIT_DEBIAN_IMAGE names another image) by this engine",
    )
    make.add_argument("--user", metavar="NAME", help="in the kernel's version string (default: enclavekit)")
    make.add_argument("--host", metavar="NAME", help="the same")
    make.add_argument("--json", action="store_true", help="print the result as JSON")
    make.add_argument("--quiet", "-q", action="store_true", help="no progress on stderr")
    check = actions.add_parser("check", help=kernel_check.HELP, description=kernel_check.HELP)
    kernel_check.add_arguments(check)


def run(args: argparse.Namespace) -> int:
    return kernel_check.run(args) if args.action == "check" else _make(args)


def request_from_args(args: argparse.Namespace) -> KernelRequest:
    """Return what the flags ask for. Raises ConfigError."""
    from enclavekit_core.errors import ConfigError

    from enclavekit_rbuilds.kernel.make import NAME, KernelRequest

    if args.jobs is not None and args.jobs < 1:
        raise ConfigError("--jobs", "", "it has to be 1 or more")
    return KernelRequest(
        source=args.source,
        sha256=args.sha256.lower() if args.sha256 else None,
        fragments=tuple(args.config),
        version=args.version,
        jobs=args.jobs,
        engine=args.in_container,
        user=args.user or NAME,
        host=args.host or NAME,
    )


def _make(args: argparse.Namespace) -> int:
    import os

    import msgspec

    from enclavekit_rbuilds.base.progress import Progress
    from enclavekit_rbuilds.kernel.made import IMAGE
    from enclavekit_rbuilds.kernel.make import copy_kernel, make_kernel

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that scratch files go on SIGTERM as on Ctrl-C
    made = make_kernel(request_from_args(args), Progress(quiet=args.quiet))
    if args.output:
        copy_kernel(made, args.output)
    image = os.path.join(args.output or made.directory, IMAGE)
    if args.json:
        document = {"kernel": image, **msgspec.to_builtins(made.record)}
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(document), indent=2).decode() + "\n")
        return 0
    size = os.stat(image).st_size
    print(f"{image}: Linux {made.record.version}, {size / 1e6:.1f} MB, from {made.record.source}")
    print(f"  sha256   {made.record.sha256}")
    print(f"  compiler {made.record.compiler}")
    if not made.record.nitro_capable:
        print(f"  NOT for Nitro: rbuilds kernel check {image} says why")
    return 0
