# SPDX-License-Identifier: Apache-2.0
"""`rbuilds build`: an image from a Dockerfile, an image archive or a directory."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from typing import TYPE_CHECKING

from enclavekit_rbuilds.commands.origin_argument import add_origin

if TYPE_CHECKING:
    from enclavekit_rbuilds.build import BuildRequest, BuildResult
    from enclavekit_rbuilds.plan.steps import Forecast

HELP = "build an image from a Dockerfile, an image archive or a directory"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--dockerfile", metavar="FILE", help="built by docker, podman or buildah, whichever works")
    source.add_argument("--archive", metavar="FILE", help="OCI layout (directory or tar file), or docker-save archive")
    source.add_argument("--rootfs", metavar="DIR", help="the app's root directory; in the image all belongs to root")
    parser.add_argument("--output", "-o", metavar="FILE", help="the image to write (default: NAME.eif)")
    parser.add_argument("--context", metavar="DIR", help="what COPY sees (default: the Dockerfile's directory)")
    parser.add_argument("--engine", choices=("docker", "podman", "buildah"), help="default: first that works")
    parser.add_argument(
        "--build-arg", metavar="NAME[=VALUE]", action="append", default=[], help="for the Dockerfile's ARG"
    )
    parser.add_argument("--target", metavar="STAGE", help="the Dockerfile's stage to build (default: the last)")
    parser.add_argument(
        "--keep-owners", action="store_true", help="with --rootfs: files keep their uid and gid (default: all root's)"
    )
    parser.add_argument("--no-engine-cache", action="store_true", help="run every step of the Dockerfile again")
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="the manifest: all of this in a file; flags override it (default: ./enclave.yaml if no source is given)",
    )
    parser.add_argument("--name", help="image name in the metadata (default: the output's name)")
    parser.add_argument("--version", help="image version in the metadata (default: 1.0)")
    _add_app_arguments(parser)
    _add_policy_arguments(parser)
    _add_image_arguments(parser)
    _add_evidence_arguments(parser)
    parser.add_argument(
        "--dry-run", action="store_true", help="print the steps, and which are in the cache; make nothing"
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--quiet", "-q", action="store_true", help="no progress on stderr")


def _add_app_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--entrypoint", metavar="WORDS", help="replaces ENTRYPOINT, discards CMD; words or a JSON list")
    parser.add_argument("--cmd", metavar="WORDS", help="replaces CMD; words or a JSON list")
    parser.add_argument("--env", "-e", metavar="NAME=VALUE", action="append", default=[], help="adds to ENV")
    parser.add_argument("--user", metavar="USER[:GROUP]", help="replaces USER")
    parser.add_argument("--workdir", metavar="DIR", help="replaces WORKDIR")
    parser.add_argument("--stop-signal", metavar="SIGNAL", help="replaces STOPSIGNAL")


def _add_policy_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--authorize",
        metavar="CERT[:VERBS]",
        action="append",
        default=[],
        help="who may enter: a client certificate and what it may do: exec,cp-in,cp-out,shell,ps,kill (default: "
        "these six in the app's root), dial,listen-remote (pipeline forward -L, -R), all (the framework's root as "
        "well), control (initctl; no other word includes it). Without any, the enclave admits nobody",
    )
    parser.add_argument(
        "--services",
        metavar="LIST",
        help="what runs beside the app: attestation,files,pipeline (default: all), or none",
    )
    parser.add_argument(
        "--egress",
        metavar="HOST:PORT[-LAST]",
        action="append",
        default=[],
        help="what the app may reach over TCP: a name, *.NAME, an address or a range; nothing else leaves",
    )
    parser.add_argument(
        "--ingress",
        metavar="PORT[:VSOCK]",
        action="append",
        default=[],
        help="a TCP port of the app that the parent may reach, and its vsock port (default: the same)",
    )
    parser.add_argument(
        "--network",
        choices=("none", "forward", "reverse", "both"),
        help="must fit the rules (default: follows from them)",
    )


def _add_evidence_arguments(parser: argparse.ArgumentParser) -> None:
    from enclavekit_rbuilds.evidence import DEFAULT_BUILDER

    parser.add_argument(
        "--no-evidence", action="store_true", help="write no NAME.pcr.json, NAME.cdx.json, NAME.intoto.json"
    )
    parser.add_argument(
        "--builder-id",
        metavar="URI",
        default=DEFAULT_BUILDER,
        help="who builds, for the provenance (default: %(default)s)",
    )
    parser.add_argument("--with-time", action="store_true", help="say in the provenance when: no two are equal then")


def _add_image_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--memory", metavar="MIB", type=int, help="for `rbuilds run`, kept in the metadata")
    parser.add_argument("--cpus", metavar="N", type=int, help="the same")
    parser.add_argument("--cid", metavar="CID", type=int, help="the same")
    parser.add_argument("--kernel", metavar="FILE", help="kernel image (default: Debian's, for the emulator only)")
    parser.add_argument(
        "--kernel-source",
        choices=("debian", "blobs", "made", "file"),
        help="Debian's cloud kernel, the host's Nitro blobs, what `rbuilds kernel make` made, or --kernel FILE",
    )
    parser.add_argument(
        "--kernel-version", metavar="V", help="Debian's package of this version; refuse any other kernel"
    )
    parser.add_argument("--kernel-sha256", metavar="HEX", help="refuse any other kernel")
    parser.add_argument(
        "--init",
        metavar="NAME",
        default="python",
        help="python: runs services and keeps logs (default); c: small and static, runs the app alone",
    )
    parser.add_argument("--cmdline", metavar="TEXT", help="kernel command line (default: that of AWS's images)")
    parser.add_argument("--signing-key", metavar="FILE", help="sign the image with this PEM key")
    parser.add_argument("--kms-key", metavar="ARN", help="sign it with this key in AWS KMS")
    parser.add_argument("--signing-certificate", metavar="FILE", help="the key's certificate, which PCR8 names")
    framework = parser.add_mutually_exclusive_group()
    framework.add_argument(
        "--framework-rootfs", metavar="DIR", help="use this root for the framework, do not build one"
    )
    add_origin(framework)
    parser.add_argument("--locked", action="store_true", help="take exactly what rbuilds.lock has, or fail")
    parser.add_argument("--lock", metavar="FILE", help="the same with this lock file (default: rbuilds.lock)")
    parser.add_argument("--arch", choices=("x86_64", "aarch64"), default="x86_64", help="default: x86_64")
    parser.add_argument(
        "--compression",
        choices=("zstd", "gzip", "none"),
        default="zstd",
        help="of the ramdisks (default: zstd; AWS's 4.14 kernels read gzip only)",
    )


def request_from_args(args: argparse.Namespace) -> BuildRequest:
    """Return what the flags and the manifest ask for. Raises ConfigError, InputError."""
    # imported here, so that --help and wrong arguments answer at once
    from enclavekit_rbuilds.manifest.merge import merge_request

    return merge_request(args)


def run(args: argparse.Namespace) -> int:
    from enclavekit_rbuilds.base.progress import Progress
    from enclavekit_rbuilds.build import forecast_build, run_build

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that scratch files go on SIGTERM as on Ctrl-C
    progress = Progress(quiet=args.quiet)
    request = request_from_args(args)
    if args.dry_run:
        _print_forecast(forecast_build(request), as_json=args.json)
        return 0
    if not request.clients and request.init == "python":
        progress.note("nobody is authorized (--authorize): the enclave will admit no one")
    result = run_build(request, progress)
    _print_result(result, as_json=args.json)
    return 0


def _print_result(result: BuildResult, *, as_json: bool) -> None:
    if as_json:
        _print_json(result)
        return
    print(f"{result.eif}: {result.size / 1e6:.1f} MB, kernel {result.kernel['name']} {result.kernel['version']}")
    for part, sizes in result.parts.items():
        unpacked = f", {sizes['unpacked'] / 1e6:.1f} MB unpacked" if "unpacked" in sizes else ""
        print(f"  {part:<10} {sizes['stored'] / 1e6:6.1f} MB{unpacked}")
    for key, rules in result.network.get("policy", {}).items():
        for rule in rules:
            print(f"  {'egress' if key == 'allow' else 'deny':<10} {rule}")
    if result.network.get("insecure_learn"):
        print("  egress     insecure_learn: everything, whatever the rules say")
    for rule in result.network.get("ingress", ()):
        print(f"  ingress    port {rule['port']} from vsock port {rule['vsock_port']}")
    for name, value in result.measurements.items():
        if name.startswith("PCR"):
            print(f"  {name:<10} {value}")


def _print_forecast(forecasts: list[Forecast], *, as_json: bool) -> None:
    if as_json:
        _print_json({"steps": forecasts})
        return
    words = {
        "reuse": "in the cache",
        "make": "to be made",
        "check": "looked at in every build",
        "depends": "depends on what is made before it",
    }
    for forecast in forecasts:
        after = f" <- {', '.join(forecast.inputs)}" if forecast.inputs else ""
        print(f"{forecast.name:<15} {words[forecast.state]:<34} {forecast.what}{after}")


def _print_json(value: object) -> None:
    import msgspec

    json.dump(msgspec.to_builtins(value), sys.stdout, indent=2)
    print()
