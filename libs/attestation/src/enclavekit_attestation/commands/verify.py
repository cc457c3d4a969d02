# SPDX-License-Identifier: Apache-2.0
"""`attest verify`: one document, from a file or from a server."""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys

from enclavekit_core.errors import ConfigError

from enclavekit_attestation import verdict
from enclavekit_attestation.commands.subject import find_subject
from enclavekit_attestation.document import MAX_OPTION_BYTES
from enclavekit_attestation.document_file import read_certificate
from enclavekit_attestation.exit_codes import exit_code_of
from enclavekit_attestation.policy import Policy, load_measurements, load_policy, parse_pcr
from enclavekit_attestation.report import RefusedError
from enclavekit_attestation.verify import DOCUMENT_TIME, Binding, Moment, verify


def run_verify(args: argparse.Namespace) -> int:
    """Verify one document as the command line says; print the verdict and return the exit code."""
    policy = read_policy(args)
    nonce = _parse_nonce(args.nonce)
    certificate = _read_certificate(args)
    at = _parse_moment(args.at)
    root = read_root(args.insecure_dev_root)
    subject = find_subject(args, nonce, certificate)
    document, nonce, service = subject.document, subject.nonce, subject.service
    binding = None if service is None else Binding(service, subject.certificate_der)
    try:
        report = verify(document, policy, nonce=nonce, at=at, binding=binding, root=root)
    except RefusedError as exc:
        shown = exc.report
        if args.all_steps:
            shown = verify(document, policy, nonce=nonce, at=at, binding=binding, root=root, whole_report=True)
        print(verdict.as_json(shown, service) if args.json else verdict.as_text(shown))
        # the steps and the reason are on standard output; scripts that keep only stderr get the reason as well
        exc.exit_code = exit_code_of(exc.step)
        raise
    print(verdict.as_json(report, service) if args.json else verdict.as_text(report))
    return 0


def read_policy(args: argparse.Namespace) -> Policy:
    """Return what the options of a verification expect. Raises ConfigError."""
    policy = load_policy(args.policy) if args.policy else Policy()
    if args.measurements:
        policy = policy.with_pcrs(load_measurements(args.measurements).pcrs)
    for text in args.pcr:
        name, _, value = text.partition("=")
        policy = policy.with_pcrs(dict([parse_pcr(name, value, f"--pcr {text:.16}")]))
    return dataclasses.replace(
        policy,
        allow_debug=policy.allow_debug or args.allow_debug,
        max_age_s=policy.max_age_s if args.max_age is None else args.max_age,
    )


def _parse_nonce(text: str | None) -> bytes | None:
    if text is None:
        return None
    if not re.fullmatch(r"(?:[0-9a-fA-F]{2})+", text) or len(text) > 2 * MAX_OPTION_BYTES:
        raise ConfigError("--nonce", "", f"it is not hex of 1 to {MAX_OPTION_BYTES} bytes")
    return bytes.fromhex(text)


def _parse_moment(text: str | None) -> Moment | None:
    """Return the moment to verify at; the document's own word for it is what archival checks go by."""
    if text is None:
        return None
    if text == DOCUMENT_TIME:
        return DOCUMENT_TIME
    if not re.fullmatch(r"[0-9]{1,16}", text, re.ASCII):
        raise ConfigError("--at", "", f"{text!r:.40} is neither milliseconds since 1970 nor `{DOCUMENT_TIME}`")
    return int(text)


def read_root(path: str | None) -> bytes | None:
    """Return the development root that is named, and warn. Raises ConfigError."""
    if path is None:
        return None
    from enclavekit_attestation.roots import read_insecure_dev_root

    root = read_insecure_dev_root(path)
    print(f"attest: warning: {path} is trusted instead of the AWS root: {verdict.DEVELOPMENT}", file=sys.stderr)
    return root


def _read_certificate(args: argparse.Namespace) -> bytes | None:
    if args.certificate is None:
        return None
    if args.service is None:
        raise ConfigError("--certificate", "", "it needs --service: whose certificate it should be")
    return read_certificate(args.certificate)
