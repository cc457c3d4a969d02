# SPDX-License-Identifier: Apache-2.0
"""`attest`: verify an attestation document, anywhere, offline."""

from __future__ import annotations

import argparse
import base64
import re
import sys
import time

from enclavekit_core.cli import run_command
from enclavekit_core.errors import ConfigError, VerificationError

from enclavekit_attestation import verdict
from enclavekit_attestation.document import MAX_OPTION_BYTES, parse_document
from enclavekit_attestation.document_file import read_document, read_input
from enclavekit_attestation.policy import Policy, load_measurements, load_policy, parse_pcr
from enclavekit_attestation.verify import Step, VerifiedDocument, verify_document

DOCUMENT_TIME = "document"
EXIT_CODES = """\
exit codes:
  0  verified: every check that was asked for held
  2  the command line or an input file cannot be used
  6  not verified
"""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="attest", description="Verify attestation documents of Nitro Enclaves.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    verify = commands.add_parser(
        "verify",
        help="verify a document against the AWS root and a policy",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verify.add_argument("file", metavar="FILE", help="the document: raw CBOR, hex or base64; - is standard input")
    verify.add_argument(
        "--at",
        metavar="MS",
        help="archival check: verify as of this moment, milliseconds since 1970 UTC, "
        f"or `{DOCUMENT_TIME}` for the document's own (default: now, a live check)",
    )
    expect = verify.add_argument_group("what the document must say")
    expect.add_argument("--policy", metavar="FILE", help="policy file (YAML): pcrs, allow_debug, max_age_s")
    expect.add_argument("--measurements", metavar="FILE", help="JSON of `eif describe` or nitro-cli: expect its PCRs")
    expect.add_argument("--pcr", metavar="N=HEX", action="append", default=[], help="expect this value; repeatable")
    expect.add_argument("--nonce", metavar="HEX", help="expect this nonce")
    expect.add_argument("--max-age", metavar="S", type=float, help="oldest document accepted, seconds (live: 300)")
    expect.add_argument(
        "--service", metavar="NAME", help="expect a binding of this service's TLS key, and show the key's hash"
    )
    expect.add_argument(
        "--certificate", metavar="FILE", help="expect that the bound key is this certificate's (PEM or DER)"
    )
    weaken = verify.add_argument_group("what weakens the verdict")
    weaken.add_argument("--allow-debug", action="store_true", help="accept an enclave in debug mode (zero PCRs)")
    weaken.add_argument(
        "--insecure-dev-root", metavar="FILE", help="trust this root (PEM) instead of AWS's: for emulated enclaves"
    )
    verify.add_argument("--json", action="store_true", help="print the verdict as JSON")
    return parser


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    return run_command("attest", lambda: run_verify(args))


def run_verify(args: argparse.Namespace) -> int:
    """Verify one document as the command line says; print the verdict and return the exit code."""
    policy = _read_policy(args)
    nonce = _parse_nonce(args.nonce)
    certificate = _read_certificate(args)
    root = _read_root(args.insecure_dev_root)
    raw = read_document(args.file)
    steps: list[Step] = []
    try:
        verified = verify_document(
            raw,
            policy,
            now_ms=_parse_moment(args.at, raw),
            root=root,
            nonce=nonce,
            archival=args.at is not None,
            steps=steps,
        )
        binding = _check_binding(verified, args.service, certificate, steps)
    except VerificationError as exc:
        print(verdict.failure_json(steps, exc) if args.json else verdict.failure_text(steps, exc))
        # the steps and the reason are on standard output; scripts that keep only stderr get the reason as well
        raise
    print(verdict.success_json(verified, steps, binding) if args.json else verdict.success_text(verified, steps))
    return 0


def _read_policy(args: argparse.Namespace) -> Policy:
    policy = load_policy(args.policy) if args.policy else Policy()
    if args.measurements:
        policy = policy.with_pcrs(load_measurements(args.measurements).pcrs)
    for text in args.pcr:
        name, _, value = text.partition("=")
        policy = policy.with_pcrs(dict([parse_pcr(name, value, f"--pcr {text:.16}")]))
    max_age_s = policy.max_age_s if args.max_age is None else args.max_age
    return Policy(policy.pcrs, policy.allow_debug or args.allow_debug, max_age_s, policy.clock_skew_s)


def _parse_nonce(text: str | None) -> bytes | None:
    if text is None:
        return None
    if not re.fullmatch(r"(?:[0-9a-fA-F]{2})+", text) or len(text) > 2 * MAX_OPTION_BYTES:
        raise ConfigError("--nonce", "", f"it is not hex of 1 to {MAX_OPTION_BYTES} bytes")
    return bytes.fromhex(text)


def _parse_moment(text: str | None, raw: bytes) -> int:
    """Return the moment to verify at; the document's own word for it is what archival checks go by."""
    if text is None:
        return time.time_ns() // 1_000_000
    if text == DOCUMENT_TIME:
        return parse_document(raw).timestamp_ms
    if not re.fullmatch(r"[0-9]{1,16}", text, re.ASCII):
        raise ConfigError("--at", "", f"{text!r:.40} is neither milliseconds since 1970 nor `{DOCUMENT_TIME}`")
    return int(text)


def _read_root(path: str | None) -> bytes | None:
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
    import ssl

    content = read_input(args.certificate, "certificate")
    if not content.lstrip().startswith(b"-----BEGIN"):
        return content
    try:
        return ssl.PEM_cert_to_DER_cert(content.decode("ascii"))
    except ValueError as exc:
        raise ConfigError(args.certificate, "", "it is not a PEM certificate") from exc


def _check_binding(
    verified: VerifiedDocument, service: str | None, certificate: bytes | None, steps: list[Step]
) -> verdict.Binding | None:
    """Return (service, SPKI hash) if a service was named; with its certificate, only if that has the bound key."""
    if service is None:
        return None
    from enclavekit_attestation.binding import check_binding, read_binding

    if certificate is not None:
        check_binding(verified.user_data, service, certificate, public_key=verified.public_key)
    spki_sha256 = read_binding(verified.user_data, service)
    pin = base64.b64encode(spki_sha256).decode()
    whose = "is the certificate's" if certificate is not None else "is yet to be pinned"
    steps.append(Step("binding", f"service {service!r} has the TLS key sha256//{pin}, which {whose}"))
    return service, spki_sha256
