# SPDX-License-Identifier: Apache-2.0
"""What `attest verify` is to verify: a document in a file, behind a URL, or inside a TLS certificate."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

from enclavekit_core.errors import ConfigError, InputError, RemoteProtocolError, VerificationError

from enclavekit_attestation.document_file import read_certificate, read_document

CANNOT_GO_WITH_URL = ("file", "at", "nonce", "certificate")  # they are about a document that is there already
CANNOT_GO_WITH_RA_TLS = ("nonce", "certificate")  # no certificate has a nonce of ours, and it binds its own key


@dataclass(frozen=True, slots=True)
class Subject:
    """A document that nobody has verified, and what to verify it against."""

    document: bytes
    nonce: bytes | None
    service: str | None
    """Whose TLS key must be bound; None: no binding is expected."""
    certificate_der: bytes | None
    """The certificate whose key it must be."""


def find_subject(args: argparse.Namespace, nonce: bytes | None, certificate_der: bytes | None) -> Subject:
    """Return what the command line names.

    Raises: ConfigError, InputError; with a URL TransportError, RemoteProtocolError.
    """
    if args.url:
        _refuse_together(args, "--url", CANNOT_GO_WITH_URL)
    if args.ra_tls:
        _refuse_together(args, "--ra-tls", CANNOT_GO_WITH_RA_TLS)
    if args.url:
        return _ask_server(args.url, args.service, ra_tls=args.ra_tls)
    if args.file is None:
        raise ConfigError("attest verify", "", "give the FILE with the document, or --url")
    if not args.ra_tls:
        return Subject(read_document(args.file), nonce, args.service, certificate_der)
    from enclavekit_attestation.fetch import SERVICE_RA

    der = read_certificate(args.file)
    return Subject(evidence_in(der, args.file), None, args.service or SERVICE_RA, der)


def _ask_server(url: str, service: str | None, *, ra_tls: bool) -> Subject:
    from enclavekit_attestation.fetch import SERVICE_RA, fetch_certificate, fetch_evidence, parse_target
    from enclavekit_attestation.ra_tls import document_in_certificate

    target = parse_target(url)
    service = service or SERVICE_RA
    if not ra_tls:
        found = fetch_evidence(target)
        return Subject(found.document, found.nonce, service, found.certificate_der)
    der = fetch_certificate(target)
    try:
        return Subject(document_in_certificate(der), None, service, der)
    except VerificationError as exc:
        raise RemoteProtocolError(f"cannot get evidence from {target.url}: {exc.reason}") from exc


def evidence_in(certificate_der: bytes, name: str) -> bytes:
    """Return the document inside a certificate of a file, verified by nobody. Raises InputError if there is none."""
    from enclavekit_attestation.ra_tls import document_in_certificate

    try:
        return document_in_certificate(certificate_der)
    except VerificationError as exc:
        raise InputError("find", f"a document in {name}", exc.reason) from exc


def _refuse_together(args: argparse.Namespace, flag: str, names: Sequence[str]) -> None:
    for name in names:
        if getattr(args, name) is not None:
            raise ConfigError(flag, "", f"it cannot go with {'FILE' if name == 'file' else f'--{name}'}")
