# SPDX-License-Identifier: Apache-2.0
"""`rbuilds doctor`: can enclaves run here, can this image, and if not, why, and what helps."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

from enclavekit_rbuilds.commands.enclave_arguments import add_backend_argument

if TYPE_CHECKING:
    from enclavekit_rbuilds.run.findings import Finding
    from enclavekit_rbuilds.run.model import BackendName

HELP = "examine this host, and an image, before anything runs"
EXIT_ERRORS = 1
WIDTH = 8  # of the severity's column


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--image", metavar="FILE", help="the .eif file that is to run")
    parser.add_argument("--memory", type=int, metavar="MIB", help="that it is to run with (default: the image's)")
    parser.add_argument("--cpus", type=int, metavar="N", help="that it is to run with (default: the image's, else 2)")
    parser.add_argument("--cid", type=int, metavar="N", help="that it is to run with (default: the image's, else 127)")
    add_backend_argument(parser)
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    parser.epilog = "exit codes: 0 nothing is wrong, 1 at least one error, 2 a flag cannot be used"


def run(args: argparse.Namespace) -> int:
    from enclavekit_rbuilds.run.cids import DEFAULT_CID
    from enclavekit_rbuilds.run.diagnosis import diagnose_host
    from enclavekit_rbuilds.run.findings import Wanted, worst
    from enclavekit_rbuilds.run.host_facts import read_host_facts
    from enclavekit_rbuilds.run.image import DEFAULT_CPUS
    from enclavekit_rbuilds.run.image_diagnosis import diagnose_image, open_image
    from enclavekit_rbuilds.run.sizing import default_memory_mib

    backend, taken, findings = _look_at_backend(args.backend)
    wanted = Wanted(memory_mib=args.memory, cpus=args.cpus or DEFAULT_CPUS, cid=args.cid or DEFAULT_CID)
    if args.image is not None:
        image, about_image = open_image(args.image, backend)
        findings += about_image
        if image is not None:
            findings += diagnose_image(image, args.memory)
            asked = image.resources
            wanted = Wanted(
                memory_mib=args.memory or asked.memory_mib or default_memory_mib(image.size, len(image.services)),
                cpus=args.cpus or asked.cpus or DEFAULT_CPUS,
                cid=args.cid or asked.cid or DEFAULT_CID,
                has_network=bool(image.network.egress or image.network.outbound or image.network.ingress),
                arch=image.arch,
            )
    findings = diagnose_host(read_host_facts(), backend, wanted, taken) + findings
    verdict = worst(findings)
    if args.json:
        report = {"backend": backend, "verdict": verdict, "findings": [asdict(finding) for finding in findings]}
        json.dump(report, sys.stdout, indent=2)
        print()
    else:
        _print(backend, findings)
    return EXIT_ERRORS if verdict == "error" else 0


def _look_at_backend(named: str | None) -> tuple[BackendName | None, set[int], list[Finding]]:
    """Return the backend that `run` would take, the CIDs that it has given away, and what is wrong with it."""
    from enclavekit_core.errors import EnclavekitError

    from enclavekit_rbuilds.run.backend import choose_backend
    from enclavekit_rbuilds.run.findings import Finding

    try:
        backend = choose_backend(named)
    except EnclavekitError as exc:
        finding = Finding("error", "backend", str(exc), "run has nothing to run it with", "see the other findings")
        return ("nitro-cli" if named == "nitro-cli" else None), set(), [finding]
    try:
        taken = {enclave.cid for enclave in backend.running()}
    except EnclavekitError as exc:
        finding = Finding("error", "list-failed", str(exc), f"{backend.name} does not answer", "see the other findings")
        return backend.name, set(), [finding]
    return backend.name, taken, []


def _print(backend: str | None, findings: list[Finding]) -> None:
    from enclavekit_rbuilds.run.findings import SEVERITIES

    print(f"backend: {backend or 'none'}")
    for finding in sorted(findings, key=lambda each: SEVERITIES.index(each.severity)):
        print(f"{finding.severity:<{WIDTH}} {finding.text}" + ("" if finding.severity == "ok" else f" [{finding.id}]"))
        for name, text in (("cause", finding.cause), ("cure", finding.cure)):
            if text:
                print(f"{'':<{WIDTH}}   {name}: {text}")
    errors = sum(finding.severity == "error" for finding in findings)
    print(f"{errors} error{'' if errors == 1 else 's'}")
