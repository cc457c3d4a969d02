# SPDX-License-Identifier: Apache-2.0
"""`attest show`: the fields of a document, which anybody may have made."""

from __future__ import annotations

import argparse
import json

from enclavekit_core.errors import VerificationError

from enclavekit_attestation.commands.subject import evidence_in
from enclavekit_attestation.document import AttestationDocument, parse_document
from enclavekit_attestation.document_file import read_certificate, read_document
from enclavekit_attestation.exit_codes import exit_code_of
from enclavekit_attestation.measurement import moment
from enclavekit_attestation.report import StepName
from enclavekit_attestation.verdict import hex_of, show

WARNING = "UNVERIFIED: anybody can make a document that says this; `attest verify` tells"


def run_show(args: argparse.Namespace) -> int:
    """Print a document. Raises VerificationError (exit 11) if it is not well-formed."""
    try:
        document = parse_document(_read(args))
    except VerificationError as exc:
        exc.exit_code = exit_code_of(StepName.FORMAT)
        raise
    print(_as_json(document) if args.json else _as_text(document))
    return 0


def _read(args: argparse.Namespace) -> bytes:
    return evidence_in(read_certificate(args.file), args.file) if args.ra_tls else read_document(args.file)


def _as_json(document: AttestationDocument) -> str:
    return json.dumps(
        {
            "verified": False,
            "note": WARNING,
            "module_id": document.module_id,
            "timestamp_ms": document.timestamp_ms,
            "debug": document.is_debug,
            "pcrs": {str(index): value.hex() for index, value in sorted(document.pcrs.items())},
            "public_key": hex_of(document.public_key),
            "user_data": hex_of(document.user_data),
            "nonce": hex_of(document.nonce),
            "certificate": document.certificate.hex(),
            "cabundle": [certificate.hex() for certificate in document.cabundle],
            "signature": document.envelope.signature.hex(),
        },
        indent=2,
    )


def _as_text(document: AttestationDocument) -> str:
    lines = [WARNING, ""]
    lines += [f"module     {document.module_id}", f"made at    {moment(document.timestamp_ms)}"]
    lines += [f"{f'PCR{index}':10} {value.hex()}" for index, value in sorted(document.pcrs.items())]
    for name in ("user_data", "public_key", "nonce"):
        value = getattr(document, name)
        lines.append(f"{name:10} {'none' if value is None else show(value)}")
    for name, der in [
        ("leaf", document.certificate),
        *((f"bundle {number}", der) for number, der in enumerate(document.cabundle)),
    ]:
        lines.append(f"{name:10} {_describe(der)}")
    return "\n".join(lines)


def _describe(der: bytes) -> str:
    from enclavekit_attestation.chain import Certificate

    try:
        certificate = Certificate.load(der, "certificate")
    except VerificationError:
        return f"not a certificate, {len(der)} bytes"
    begin, end = (f"{when:%Y-%m-%dT%H:%M:%SZ}" for when in (certificate.not_before, certificate.not_after))
    return f"{certificate.common_name}, {begin} to {end}"
