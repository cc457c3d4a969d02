# SPDX-License-Identifier: Apache-2.0
"""`rbuilds build`: an image from a Dockerfile, an image archive or a directory."""

from __future__ import annotations

import argparse
import json
import shlex
import signal
import sys
from dataclasses import asdict

from enclavekit_core.errors import InputError

HELP = "build an image from a Dockerfile, an image archive or a directory"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--dockerfile", metavar="FILE", help="built by docker, podman or buildah, whichever works")
    source.add_argument("--archive", metavar="FILE", help="OCI layout in a tar file, or docker-save archive")
    source.add_argument("--rootfs", metavar="DIR", help="the app's root directory; in the image all belongs to root")
    parser.add_argument("--output", "-o", metavar="FILE", required=True, help="the image to write")
    parser.add_argument("--context", metavar="DIR", help="what COPY sees (default: the Dockerfile's directory)")
    parser.add_argument(
        "--engine", choices=("docker", "podman", "buildah"), default="", help="default: first that works"
    )
    parser.add_argument("--config", metavar="FILE", help="enclave.yaml: what follows, in a file; flags override it")
    parser.add_argument("--name", help="image name in the metadata (default: the output's name)")
    parser.add_argument("--version", help="image version in the metadata (default: 1.0)")
    parser.add_argument("--entrypoint", metavar="WORDS", help="replaces ENTRYPOINT, discards CMD; words or a JSON list")
    parser.add_argument("--cmd", metavar="WORDS", help="replaces CMD; words or a JSON list")
    parser.add_argument("--env", "-e", metavar="NAME=VALUE", action="append", default=[], help="adds to ENV")
    parser.add_argument("--user", metavar="USER[:GROUP]", help="replaces USER")
    parser.add_argument("--workdir", metavar="DIR", help="replaces WORKDIR")
    parser.add_argument("--stop-signal", metavar="SIGNAL", help="replaces STOPSIGNAL")
    parser.add_argument(
        "--authorize",
        metavar="CERT[:VERBS]",
        action="append",
        default=[],
        help="who may enter: a client certificate and what it may do: exec,cp-in,cp-out (default: these three in the "
        "app's root) or all (the framework's root as well). Without any, the enclave admits nobody",
    )
    parser.add_argument("--kernel", metavar="FILE", help="kernel image (default: Debian's, for the emulator only)")
    parser.add_argument("--cmdline", metavar="TEXT", help="kernel command line (default: that of AWS's images)")
    parser.add_argument("--framework-rootfs", metavar="DIR", help="use this root for the framework, do not build one")
    parser.add_argument("--arch", choices=("x86_64", "aarch64"), default="x86_64", help="default: x86_64")
    parser.add_argument(
        "--compression",
        choices=("zstd", "gzip", "none"),
        default="zstd",
        help="of the ramdisks (default: zstd; AWS's 4.14 kernels read gzip only)",
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--quiet", "-q", action="store_true", help="no progress on stderr")


def run(args: argparse.Namespace) -> int:
    # imported here, so that --help and wrong arguments answer at once
    from enclavekit_rbuilds.app.image_config import Overrides, parse_environment
    from enclavekit_rbuilds.base.progress import Progress
    from enclavekit_rbuilds.build import BuildRequest, run_build
    from enclavekit_rbuilds.manifest.app_config import load_app_config
    from enclavekit_rbuilds.manifest.clients import parse_authorization

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that scratch files go on SIGTERM as on Ctrl-C
    progress = Progress(quiet=args.quiet)
    config = load_app_config(args.config)
    flags = Overrides(
        entrypoint=_words("--entrypoint", args.entrypoint),
        cmd=_words("--cmd", args.cmd),
        environment=parse_environment(tuple(args.env), "--env"),
        user=args.user,
        working_directory=args.workdir,
        stop_signal=args.stop_signal,
    )
    request = BuildRequest(
        output=args.output,
        dockerfile=args.dockerfile,
        context=args.context,
        archive=args.archive,
        rootfs=args.rootfs,
        engine=args.engine,
        kernel=args.kernel,
        cmdline=args.cmdline,
        framework_rootfs=args.framework_rootfs,
        clients=tuple(parse_authorization(text) for text in args.authorize),
        name=args.name or config.name,
        version=args.version or config.version or "1.0",
        overrides=(config.overrides(), flags),
        arch=args.arch,
        compression=args.compression,
    )
    if not request.clients:
        progress.note("nobody is authorized (--authorize): the enclave will admit no one")
    result = run_build(request, progress)
    if args.json:
        json.dump(asdict(result), sys.stdout, indent=2)
        print()
        return 0
    print(f"{result.eif}: {result.size / 1e6:.1f} MB, kernel {result.kernel['name']} {result.kernel['version']}")
    for part, sizes in result.parts.items():
        unpacked = f", {sizes['unpacked'] / 1e6:.1f} MB unpacked" if "unpacked" in sizes else ""
        print(f"  {part:<10} {sizes['stored'] / 1e6:6.1f} MB{unpacked}")
    for name, value in result.measurements.items():
        if name.startswith("PCR"):
            print(f"  {name:<10} {value}")
    return 0


def _words(flag: str, text: str | None) -> tuple[str, ...] | None:
    """Split a command given on the command line: a JSON list as it is, else words as a shell splits them."""
    if text is None:
        return None
    try:
        words = json.loads(text) if text.lstrip().startswith("[") else shlex.split(text)
    except ValueError as exc:
        raise InputError("use", flag, f"it is neither words nor a JSON list: {exc}") from exc
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise InputError("use", flag, "it is not a list of strings")
    return tuple(words)
