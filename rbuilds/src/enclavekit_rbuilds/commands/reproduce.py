# SPDX-License-Identifier: Apache-2.0
"""`rbuilds reproduce`: build twice under changed conditions, compare the bytes, name what differs."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from enclavekit_rbuilds.commands import build
from enclavekit_rbuilds.evidence.build_words import Recorder, words_of

if TYPE_CHECKING:
    from enclavekit_rbuilds.build import BuildRequest
    from enclavekit_rbuilds.evidence.reproduce import Outcome
    from enclavekit_rbuilds.evidence.second_build import Source

HELP = "build twice under changed conditions, compare the bytes, name what differs"
EXIT_DIFFERS = 1
EXIT_CODES = """\
exit codes:
  0  equal
  1  they differ; section, member and field are on standard output
  2  the command line or an input cannot be used
  5  a build failed
  6  with --against-document: the document does not prove these PCRs
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog, parser.formatter_class = EXIT_CODES, argparse.RawDescriptionHelpFormatter
    recorder: Any = Recorder(parser)
    build.add_arguments(recorder)
    parser.set_defaults(build_actions=recorder.actions, with_time=False)
    ours = parser.add_argument_group("comparison (all flags above are those of `rbuilds build`)")
    against = ours.add_mutually_exclusive_group()
    against.add_argument("--against", metavar="FILE.eif", help="build once, compare with this image")
    against.add_argument("--against-pcrs", metavar="FILE", help="build once, compare with these PCRs (NAME.pcr.json)")
    against.add_argument(
        "--against-document",
        metavar="FILE",
        help="build once, verify this attestation document against its PCRs; runs `attest verify`, which must be there",
    )
    ours.add_argument("--at", metavar="MS", help="with --against-document: verify as of then, see `attest verify`")
    ours.add_argument(
        "--insecure-dev-root", metavar="FILE", help="with --against-document: trust this root, for emulated enclaves"
    )
    ours.add_argument(
        "--reuse-framework", action="store_true", help="take kernel and framework from the cache: compare the app only"
    )
    ours.add_argument("--keep", metavar="DIR", help="leave what was built there: first.eif, second.eif")
    ours.add_argument("--json", action="store_true", help="print the result as JSON")
    ours.add_argument("--quiet", "-q", action="store_true", help="no progress on stderr")


def run(args: argparse.Namespace) -> int:
    from enclavekit_core.errors import ConfigError

    from enclavekit_rbuilds.base.progress import Progress
    from enclavekit_rbuilds.evidence.document import verify_document
    from enclavekit_rbuilds.evidence.keep import keep_images, place_image
    from enclavekit_rbuilds.evidence.reproduce import (
        Reproduction,
        reproduce,
        scratch_directory,
    )
    from enclavekit_rbuilds.lock import FILE_NAME as LOCK_NAME
    from enclavekit_rbuilds.manifest.merge import manifest_path
    from enclavekit_rbuilds.manifest.model import load_manifest

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that scratch files go on SIGTERM as on Ctrl-C
    if args.against_document is None and (args.at or args.insecure_dev_root):
        raise ConfigError("command line", "", "--at and --insecure-dev-root go with --against-document")
    progress = Progress(quiet=args.quiet)
    asked = args.output
    args.config = manifest_path(args)  # named, since the second build has another working directory
    if args.locked and args.lock is None:
        args.lock = LOCK_NAME  # for the same reason
    manifest_name = load_manifest(args.config).name
    # the file's name is in the image's metadata, so an image to compare with says what to call it
    args.output = asked or args.against or f"{args.name or manifest_name or 'image'}.eif"
    request = build.request_from_args(args)
    wanted = Reproduction(
        name=os.path.basename(request.output),
        words=tuple(_words(args, "")),
        absolute_words=tuple(_words(args, os.getcwd())),
        source=_source(request),
        against=args.against,
        against_pcrs=args.against_pcrs,
        reuse_framework=args.reuse_framework,
        build_once=args.against_document is not None,
    )
    with scratch_directory() as scratch:
        outcome = reproduce(wanted, scratch, progress)
        if args.keep is not None:
            keep_images(scratch, wanted.name, args.keep)
        if args.against_document is not None:
            verify_document(args.against_document, outcome.second, scratch, args.at, args.insecure_dev_root)
        if outcome.equal and asked is not None:
            place_image(os.path.join(scratch, "second", wanted.name), asked)
    _print(outcome, args)
    return 0 if outcome.equal else EXIT_DIFFERS


def _words(args: argparse.Namespace, directory: str) -> list[str]:
    return words_of([action for action in args.build_actions if action.dest != "output"], args, directory)


def _source(request: BuildRequest) -> Source:
    from enclavekit_rbuilds.evidence.second_build import Source

    signing = request.signing
    others = [request.framework_rootfs, request.kernel.path]
    if signing is not None:
        others += [signing.certificate, signing.key]
    return Source(
        dockerfile=request.dockerfile,
        archive=request.archive,
        rootfs=request.rootfs,
        context=request.context,
        engine=request.engine,
        made_kernel=request.kernel.source == "made" and request.kernel.path is None,
        others=tuple(path for path in others if path is not None),
    )


def _print(outcome: Outcome, args: argparse.Namespace) -> None:
    if args.json:
        json.dump(asdict(outcome), sys.stdout, indent=2)
        print()
        return
    other = args.against or args.against_pcrs or args.against_document or "the first build"
    print(f"changed:  {', '.join(change.name for change in outcome.changed)}")
    if outcome.left_out:
        print(f"the same: {', '.join(f'{item.name} ({item.why})' for item in outcome.left_out)}")
    print(f"framework: {outcome.framework}")
    if outcome.equal:
        print(f"equal to {other}: sha256 {outcome.second.sha256}")
        if differ := [name for name, equal in outcome.evidence.items() if not equal]:
            print(f"the images are equal, but not what is said of them: {', '.join(differ)}")
        for name, value in outcome.second.pcrs().items():
            print(f"  {name} {value}")
        return
    print(f"DIFFERS from {other}:")
    for difference in outcome.differences:
        print(f"  {difference.text}")
