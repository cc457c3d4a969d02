# SPDX-License-Identifier: Apache-2.0
"""The certificate chain of a document, from the leaf to a root that the caller trusts.

Done explicitly, rule by rule, because general path validators do not fit: the instance certificate had no key
identifiers before mid-2024, the leaf has no subject alternative name, and AWS says not to follow the CRL links.

Checked on every certificate: P-384 key, ECDSA with SHA-384, validity at the chosen moment, no unknown critical
extension, and one encoding of what is around the signed bytes. On every CA: basicConstraints critical with CA true,
keyCertSign, pathlen. On the leaf: CA false, no pathlen, digitalSignature, not keyCertSign. Between neighbours: issuer
equals subject byte by byte, and the signature. None but the root is self-issued.

Source: RFC 5280 section 6; attestation_process.md of aws-nitro-enclaves-nsm-api.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, SECP384R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.x509.oid import ExtensionOID, SignatureAlgorithmOID
from enclavekit_core.errors import VerificationError

from enclavekit_attestation.roots import root_fingerprint

ECDSA_WITH_SHA384_DER = bytes.fromhex("300a06082a8648ce3d040303")  # AlgorithmIdentifier
UNDERSTOOD = (ExtensionOID.BASIC_CONSTRAINTS, ExtensionOID.KEY_USAGE)  # may be critical


@dataclass(frozen=True, slots=True)
class Certificate:
    """What the rules look at. The X.509 library parses late, so all of it is read where errors are caught."""

    name: str
    """For messages: "cabundle[1]"."""
    der: bytes
    version: x509.Version
    common_name: str
    """For people only; names are compared by `subject` and `issuer`."""
    subject: bytes
    issuer: bytes
    not_before: datetime.datetime
    not_after: datetime.datetime
    algorithm: x509.ObjectIdentifier
    key: object
    extensions: x509.Extensions
    signed_bytes: bytes
    signature: bytes

    @classmethod
    def load(cls, der: bytes, name: str) -> Certificate:
        """Parse one certificate. Raises VerificationError."""
        try:
            parsed = x509.load_der_x509_certificate(der)
            return cls(
                name=name,
                der=der,
                version=parsed.version,
                common_name=ascii(parsed.subject.rfc4514_string())[1:101],
                subject=parsed.subject.public_bytes(),
                issuer=parsed.issuer.public_bytes(),
                not_before=parsed.not_valid_before_utc,
                not_after=parsed.not_valid_after_utc,
                algorithm=parsed.signature_algorithm_oid,
                key=parsed.public_key(),
                extensions=parsed.extensions,
                signed_bytes=parsed.tbs_certificate_bytes,
                signature=parsed.signature,
            )
        except Exception as exc:  # hostile bytes: whichever of its exceptions the parser picks, it is no certificate
            raise _refuse(name, "it is not a well-formed X.509 certificate") from exc

    def p384_key(self) -> EllipticCurvePublicKey:
        """Return the key. Raises VerificationError unless it is on P-384."""
        if not isinstance(self.key, EllipticCurvePublicKey) or not isinstance(self.key.curve, SECP384R1):
            raise _refuse(self.name, "its key is not on P-384")
        return self.key


def verify_chain(leaf_der: bytes, cabundle: Sequence[bytes], root_der: bytes, at_ms: int) -> EllipticCurvePublicKey:
    """Verify the chain and return the leaf's key.

    Args:
        leaf_der: the document's `certificate`.
        cabundle: as in the document, root first. The root in it is only compared with the trusted one, never trusted.
        root_der: the trusted root.
        at_ms: the moment at which all certificates must be valid, milliseconds since 1970 UTC.
    Raises:
        VerificationError naming the certificate and the rule.
    """
    if cabundle[0] != root_der:
        reason = _explain_root(cabundle[0], root_der)
        raise VerificationError("certificate chain", reason, expected=root_der, actual=cabundle[0])
    try:
        at = datetime.datetime.fromtimestamp(at_ms / 1000, datetime.UTC)
    except (OverflowError, ValueError, OSError) as exc:
        raise VerificationError("certificate chain", f"{at_ms} ms is no moment in time") from exc

    root = Certificate.load(root_der, "root certificate")
    issuer, issuer_key = root, _check_common(root, at)
    _check_ca(root, below=len(cabundle) - 1)
    _check_issued(root, root, issuer_key)
    for position, der in enumerate(cabundle[1:], start=1):
        authority = Certificate.load(der, f"cabundle[{position}]")
        if authority.subject == authority.issuer:
            raise _refuse(authority.name, "it is self-issued, which only the root is")
        key = _check_common(authority, at)
        _check_ca(authority, below=len(cabundle) - 1 - position)
        _check_issued(authority, issuer, issuer_key)
        issuer, issuer_key = authority, key
    leaf = Certificate.load(leaf_der, "leaf certificate")
    leaf_key = _check_common(leaf, at)
    _check_leaf(leaf)
    _check_issued(leaf, issuer, issuer_key)
    return leaf_key


def _check_common(certificate: Certificate, at: datetime.datetime) -> EllipticCurvePublicKey:
    """Check what holds for every certificate and return its key."""
    if certificate.version is not x509.Version.v3:
        raise _refuse(certificate.name, "it is not of version 3")
    if certificate.algorithm != SignatureAlgorithmOID.ECDSA_WITH_SHA384:
        raise _refuse(certificate.name, "it is not signed with ECDSA and SHA-384")
    key = certificate.p384_key()
    if certificate.der != _encode_outside(certificate.signed_bytes, certificate.signature):
        raise _refuse(certificate.name, "what is around its signed bytes is not DER")
    if at < certificate.not_before:
        raise _refuse(certificate.name, f"it is not valid before {certificate.not_before:%Y-%m-%dT%H:%M:%SZ}")
    if at > certificate.not_after:
        raise _refuse(certificate.name, f"it expired at {certificate.not_after:%Y-%m-%dT%H:%M:%SZ}")
    for extension in certificate.extensions:
        if extension.critical and extension.oid not in UNDERSTOOD:
            raise _refuse(certificate.name, f"it has an unknown critical extension {extension.oid.dotted_string}")
    return key


def _encode_outside(signed_bytes: bytes, signature: bytes) -> bytes:
    """Return the certificate of these parts. Parsers take a second form, e.g. unused bits in the signature."""
    bits = b"\0" + signature
    content = signed_bytes + ECDSA_WITH_SHA384_DER + b"\x03" + _der_length(len(bits)) + bits
    return b"\x30" + _der_length(len(content)) + content


def _der_length(length: int) -> bytes:
    if length < 0x80:
        return bytes([length])
    size = (length.bit_length() + 7) // 8
    return bytes([0x80 + size]) + length.to_bytes(size, "big")


def _check_ca(certificate: Certificate, *, below: int) -> None:
    """Check a CA above `below` further CA certificates (the leaf is not counted, RFC 5280 section 4.2.1.9)."""
    constraints = _basic_constraints(certificate)
    if not constraints.ca:
        raise _refuse(certificate.name, "it is not a CA certificate")
    if constraints.path_length is not None and constraints.path_length < below:
        raise _refuse(certificate.name, f"its path length {constraints.path_length} is too short for {below} CAs below")
    if not _key_usage(certificate).key_cert_sign:
        raise _refuse(certificate.name, "its key may not sign certificates")


def _check_leaf(certificate: Certificate) -> None:
    constraints = _basic_constraints(certificate)
    if constraints.ca or constraints.path_length is not None:
        raise _refuse(certificate.name, "it is a CA certificate")
    usage = _key_usage(certificate)
    if not usage.digital_signature or usage.key_cert_sign:
        raise _refuse(certificate.name, "its key may not sign documents")


def _basic_constraints(certificate: Certificate) -> x509.BasicConstraints:
    try:
        extension = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    except x509.ExtensionNotFound as exc:
        raise _refuse(certificate.name, "it has no basicConstraints") from exc
    if not extension.critical:
        raise _refuse(certificate.name, "its basicConstraints are not critical")
    return extension.value


def _key_usage(certificate: Certificate) -> x509.KeyUsage:
    try:
        return certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound as exc:
        raise _refuse(certificate.name, "it has no keyUsage") from exc


def _check_issued(certificate: Certificate, issuer: Certificate, issuer_key: EllipticCurvePublicKey) -> None:
    if certificate.issuer != issuer.subject:
        raise _refuse(certificate.name, "its issuer is not the certificate above it")
    try:
        issuer_key.verify(certificate.signature, certificate.signed_bytes, ECDSA(SHA384()))
    except InvalidSignature:
        raise _refuse(certificate.name, "its signature is not by the certificate above it") from None


def _explain_root(der: bytes, root_der: bytes) -> str:
    try:
        name = f" ({x509.load_der_x509_certificate(der).subject.rfc4514_string():.100})"
    except Exception:  # as in Certificate.load; the fingerprint says enough
        name = ""
    return (
        f"it starts at another root{name}, SHA-256 {root_fingerprint(der)[:16]}..., "
        f"than the trusted one, {root_fingerprint(root_der)[:16]}..."
    )


def _refuse(what: str, reason: str) -> VerificationError:
    return VerificationError("certificate chain", f"{what}: {reason}")
