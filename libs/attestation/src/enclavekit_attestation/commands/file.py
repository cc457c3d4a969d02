# SPDX-License-Identifier: Apache-2.0
"""`attest file`: a file in an enclave, proven to be one of ours."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
from collections.abc import Callable

from enclavekit_core.errors import ConfigError, VerificationError

from enclavekit_attestation import verdict
from enclavekit_attestation.commands.verify import read_policy, read_root
from enclavekit_attestation.exit_codes import FILE_EXIT_CODE, PROOF_EXIT_CODE, exit_code_of
from enclavekit_attestation.fetch import SERVICE_RA, parse_target
from enclavekit_attestation.fetch_file import FileSession
from enclavekit_attestation.file_claim import check_file_claim, check_file_proof
from enclavekit_attestation.report import RefusedError, Report, Step
from enclavekit_attestation.verify import Binding, verify

CHUNK_BYTES = 1024 * 1024


def run_file(args: argparse.Namespace) -> int:
    """Prove a file as the command line says; print the verdict and return the exit code."""
    if not args.path.startswith("/"):
        raise ConfigError("PATH", "", f"{args.path!r:.200} is not absolute")
    policy, root, target = read_policy(args), read_root(args.insecure_dev_root), parse_target(args.url)
    digest = _hash_file(args.expect)
    session = FileSession(target)
    try:
        evidence = session.prove()
        binding = Binding(args.service or SERVICE_RA, evidence.certificate_der)
        server = _verify(
            lambda: verify(evidence.document, policy, nonce=evidence.nonce, binding=binding, root=root), args
        )
        # nothing about the file was asked before the server was known
        if args.generate:
            session.generate(args.path)
        document, nonce = session.document(args.path, args.wait)
    finally:
        session.close()
    about_file = dataclasses.replace(policy, user_data=None)  # what the policy demands is about the server's
    report = _verify(lambda: verify(document, about_file, nonce=nonce, root=root), args)
    steps = _check_content(report, os.fsencode(args.path), digest, args)
    if args.json:
        print(_as_json(report, [*server.steps, *report.steps, *steps], True, args))
    else:
        print("server\n" + "\n".join(verdict.step_line(step) for step in server.steps))
        print("document about the file\n" + "\n".join(verdict.step_line(step) for step in [*report.steps, *steps]))
        assert report.document is not None
        print("\n" + "\n".join(f"note: {note}" for note in verdict.notes_of(report.document)), end="")
        print(f"VERIFIED: {args.path} in the enclave is {args.expect}")
    return 0


def _verify(check: Callable[[], Report], args: argparse.Namespace) -> Report:
    try:
        return check()
    except RefusedError as exc:
        print(_as_json(exc.report, list(exc.report.steps), False, args) if args.json else verdict.as_text(exc.report))
        exc.exit_code = exit_code_of(exc.step)
        raise


def _check_content(report: Report, path: bytes, digest: bytes, args: argparse.Namespace) -> list[Step]:
    assert report.document is not None
    user_data, public_key = report.document.user_data, report.document.public_key
    steps: list[Step] = []
    checks: list[tuple[str, int, Callable[[], str | Step]]] = [
        ("file", FILE_EXIT_CODE, lambda: check_file_claim(user_data, path, digest)),
        ("vrf", PROOF_EXIT_CODE, lambda: _check_proof(user_data, path, digest, public_key)),
    ]
    for name, code, check in checks:
        try:
            found = check()
            steps.append(found if isinstance(found, Step) else Step(name, found))
        except VerificationError as exc:
            steps.append(Step(name, exc.reason, False, exc.actual, exc.expected))
            shown = [*report.steps, *steps]
            print(
                _as_json(report, shown, False, args)
                if args.json
                else "\n".join([*map(verdict.step_line, shown), "", "NOT VERIFIED"])
            )
            exc.exit_code = code
            raise
    return steps


def _check_proof(user_data: bytes | None, path: bytes, digest: bytes, public_key: bytes | None) -> str | Step:
    try:
        return check_file_proof(user_data, path, digest, public_key)
    except ImportError:
        return Step("vrf", "not checked: ecvrf is not installed; the signature covers path and hash without it", None)


def _as_json(report: Report, steps: list[Step], verified: bool, args: argparse.Namespace) -> str:
    table: dict[str, object] = {"verified": verified, "path": args.path, "expected": args.expect}
    if report.document is not None:
        table |= {"document": verdict.fields_of(report.document), "notes": list(verdict.notes_of(report.document))}
    failure = next((step for step in steps if step.passed is False), None)
    if failure is not None:
        table |= {"failed_step": failure.name, "reason": failure.detail}
    return json.dumps({**table, "steps": [dataclasses.asdict(step) for step in steps]}, indent=2)


def _hash_file(path: str) -> bytes:
    sha3 = hashlib.sha3_512()
    try:
        with open(path, "rb") as source:
            while chunk := source.read(CHUNK_BYTES):
                sha3.update(chunk)
    except OSError as exc:
        raise ConfigError(path, "", (exc.strerror or str(exc)).lower()) from exc
    return sha3.digest()
