# SPDX-License-Identifier: Apache-2.0
"""The signature section: an EC key signs PCR0, a certificate names the signer (its DER is PCR8).

    CBOR [ {"signing_certificate": [byte, ...], "signature": [byte, ...]} ]   PEM file and COSE_Sign1, as arrays of ints
    COSE_Sign1 payload: CBOR {"register_index": 0, "register_value": [48 ints]}

A good signature proves that the holder of *some* key signed: who that is, decides a PCR8 policy. The certificate's
chain is not checked, by us or by Nitro. Source: aws-nitro-enclaves-image-format, src/utils/eif_signer.rs; RFC 9052.
"""

from __future__ import annotations

import datetime
import io
import os
from dataclasses import dataclass
from typing import Any

import cbor2
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from enclavekit_core.errors import InputError, VerificationError, describe_cause

from enclavekit_eif.model import MAX_SIGNATURE_BYTES
from enclavekit_eif.reader import Eif

COSE_SIGN1_TAG = b"\xd2"  # tag 18; may be there or not
MAX_KEY_FILE_BYTES = 64 * 1024  # a PEM file of one key or certificate is below 4 KiB


@dataclass(frozen=True, slots=True)
class Algorithm:
    protected: bytes
    """CBOR of {1: algorithm}, as it is in the COSE structure."""
    hash: hashes.HashAlgorithm
    size: int
    """Bytes of r, and of s."""
    name: str
    """Of the signing algorithm, as KMS spells it."""


ALGORITHMS = {  # by curve; no others are allowed
    "secp256r1": Algorithm(bytes.fromhex("a10126"), hashes.SHA256(), 32, "ECDSA_SHA_256"),
    "secp384r1": Algorithm(bytes.fromhex("a1013822"), hashes.SHA384(), 48, "ECDSA_SHA_384"),
    "secp521r1": Algorithm(bytes.fromhex("a1013823"), hashes.SHA512(), 66, "ECDSA_SHA_512"),
}
DEFAULT_CURVE = "secp384r1"


@dataclass(frozen=True, slots=True)
class EifSignature:
    """What a signature section says; nothing of it is verified by decoding."""

    certificate_pem: bytes
    cose: bytes
    """COSE_Sign1, tagged or not."""

    def certificate(self) -> x509.Certificate:
        """Return the (first) certificate. Raises InputError."""
        try:
            certificate = x509.load_pem_x509_certificate(self.certificate_pem)
            # parsed lazily: fail here, not in a caller
            _ = certificate.issuer, certificate.not_valid_after_utc, certificate.public_key()
        except (ValueError, TypeError, x509.InvalidVersion, UnsupportedAlgorithm) as exc:
            raise InputError("read", "signing certificate", str(exc)) from exc
        return certificate

    def certificate_der(self) -> bytes:
        """Return the DER that PCR8 covers. Raises InputError."""
        return self.certificate().public_bytes(serialization.Encoding.DER)


@dataclass(frozen=True)
class Signer:
    """A key at hand. `enclavekit_eif.sign.Signer` is what every signer has in common."""

    key: ec.EllipticCurvePrivateKey
    certificate_pem: bytes

    def sign(self, pcr0: bytes) -> bytes:
        """Return the signature section's data for this PCR0. Same key and PCR0, same bytes (RFC 6979)."""
        algorithm = ALGORITHMS[self.key.curve.name]
        message = signed_message(algorithm.protected, register_payload(pcr0))
        der = self.key.sign(message, ec.ECDSA(algorithm.hash, deterministic_signing=True))
        return signature_section(self.certificate_pem, algorithm, pcr0, raw_signature(der, algorithm))


def algorithm_of(certificate: x509.Certificate) -> Algorithm:
    """Return the algorithm that goes with the certificate's key. Raises InputError if there is none."""
    key = certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name not in ALGORITHMS:
        raise InputError("sign with", "signing certificate", "its key is not an EC key on P-256, P-384 or P-521")
    return ALGORITHMS[key.curve.name]


def raw_signature(der: bytes, algorithm: Algorithm) -> bytes:
    """Return r || s, as COSE has it, of a DER signature. Raises InputError."""
    try:
        return b"".join(number.to_bytes(algorithm.size, "big") for number in decode_dss_signature(der))
    except (ValueError, OverflowError) as exc:
        raise InputError("read", "signature", "not a DER signature of the certificate's kind of key") from exc


def signature_section(certificate_pem: bytes, algorithm: Algorithm, pcr0: bytes, raw: bytes) -> bytes:
    """Return the data of a signature section. Raises InputError if it is too large."""
    cose = cbor2.dumps([algorithm.protected, {}, register_payload(pcr0), raw])
    data = encode_signature(EifSignature(certificate_pem, cose))
    if len(data) > MAX_SIGNATURE_BYTES:
        raise InputError("sign", "EIF", f"the signature section would have more than {MAX_SIGNATURE_BYTES} bytes")
    return data


def load_certificate(path: str) -> EifSignature:
    """Load the PEM file of a signing certificate. Raises InputError."""
    loaded = EifSignature(read_small(path), b"")
    try:
        loaded.certificate()
    except InputError as exc:
        raise InputError("read signing certificate", path, exc.reason) from exc
    return loaded


def load_signer(certificate_path: str, key_path: str) -> Signer:
    """Load a PEM certificate and its PEM private key (EC, P-256, P-384 or P-521). Raises InputError."""
    pem = read_small(certificate_path)
    certificate = EifSignature(pem, b"").certificate()
    try:
        key = serialization.load_pem_private_key(read_small(key_path), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as exc:
        raise InputError("read private key", key_path, str(exc)) from exc
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name not in ALGORITHMS:
        raise InputError("sign with", key_path, "not an EC key on P-256, P-384 or P-521")
    spki = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    if key.public_key().public_bytes(*spki) != certificate.public_key().public_bytes(*spki):
        raise InputError("sign with", key_path, f"{certificate_path} is the certificate of another key")
    return Signer(key, pem)


def read_signature(eif: Eif) -> EifSignature:
    """Return the signature of a signed image, unverified. Raises InputError if the section is malformed."""
    assert eif.signature is not None
    try:
        return decode_signature(eif.read_section(eif.signature))
    except InputError as exc:
        raise InputError("read EIF", eif.path, f"signature: {exc.reason}") from exc


def encode_signature(signature: EifSignature) -> bytes:
    """Return the data of a signature section."""
    fields = {"signing_certificate": list(signature.certificate_pem), "signature": list(signature.cose)}
    return cbor2.dumps([fields])


def decode_signature(data: bytes) -> EifSignature:
    """Decode the data of a signature section. Only the first signature counts, as everywhere. Raises InputError."""
    document = _decode_cbor(data)
    if not isinstance(document, list) or not document or not isinstance(document[0], dict):
        raise InputError("read", "signature section", "not an array of maps")
    values = []
    for key in ("signing_certificate", "signature"):
        value = document[0].get(key)
        if not isinstance(value, list) or not all(type(byte) is int and 0 <= byte <= 255 for byte in value):
            raise InputError("read", "signature section", f"{key} is not an array of bytes")
        values.append(bytes(value))
    signature = EifSignature(*values)
    signature.certificate()
    return signature


def verify_signature(signature: EifSignature, pcr0: bytes) -> None:
    """Check that the certificate's key signed exactly this PCR0. Raises VerificationError."""
    document = _decode_cose(signature.cose)
    protected, unprotected, payload, raw = document
    key = signature.certificate().public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name not in ALGORITHMS:
        raise _unverified("the certificate has no EC key on P-256, P-384 or P-521")
    algorithm = ALGORITHMS[key.curve.name]
    if protected != algorithm.protected or unprotected:
        raise _unverified("its algorithm is not that of the certificate's key")
    if len(raw) != 2 * algorithm.size:
        raise _unverified("the signature has the wrong length")
    r, s = (int.from_bytes(part, "big") for part in (raw[: algorithm.size], raw[algorithm.size :]))
    try:
        key.verify(encode_dss_signature(r, s), signed_message(protected, payload), ec.ECDSA(algorithm.hash))
    except InvalidSignature:
        raise _unverified("it was not made by the certificate's key") from None
    if payload != register_payload(pcr0):
        raise VerificationError(
            "EIF signature", "it signs another PCR0", expected=register_payload(pcr0), actual=payload
        )


def verify_validity(signature: EifSignature, now: datetime.datetime) -> None:
    """Check that the certificate is valid at `now` (aware), as run-enclave does. Raises VerificationError."""
    certificate = signature.certificate()
    if now < certificate.not_valid_before_utc:
        raise _unverified(f"the signing certificate is not valid before {certificate.not_valid_before_utc}")
    if now > certificate.not_valid_after_utc:
        raise _unverified(f"the signing certificate expired at {certificate.not_valid_after_utc}")


def register_payload(pcr0: bytes) -> bytes:
    """Return the payload that is signed for this PCR0."""
    return cbor2.dumps({"register_index": 0, "register_value": list(pcr0)})


def signed_message(protected: bytes, payload: bytes) -> bytes:
    """Return the Sig_structure of RFC 9052, 4.4."""
    return cbor2.dumps(["Signature1", protected, b"", payload])


def _decode_cose(data: bytes) -> tuple[bytes, dict[Any, Any], bytes, bytes]:
    try:
        document = _decode_cbor(data.removeprefix(COSE_SIGN1_TAG))
    except InputError as exc:
        raise _unverified(exc.reason) from exc
    if not isinstance(document, list) or [type(part) for part in document] != [bytes, dict, bytes, bytes]:
        raise _unverified("not a COSE_Sign1 structure")
    protected, unprotected, payload, signature = document
    return protected, unprotected, payload, signature


def _decode_cbor(data: bytes) -> Any:
    source = io.BytesIO(data)
    try:
        document = cbor2.CBORDecoder(source).decode()
    except (cbor2.CBORDecodeError, ValueError, RecursionError, TypeError, OverflowError, MemoryError) as exc:
        raise InputError("read", "signature section", f"malformed CBOR: {exc}") from exc
    if source.read(1):
        raise InputError("read", "signature section", "data after the CBOR")
    return document


def read_small(path: str) -> bytes:
    """Return a key, certificate or signature file. Raises InputError."""
    try:
        with open(os.fspath(path), "rb") as source:
            data = source.read(MAX_KEY_FILE_BYTES + 1)
    except (OSError, ValueError) as exc:
        raise InputError("read", path, describe_cause(exc)) from exc
    if len(data) > MAX_KEY_FILE_BYTES:
        raise InputError("read", path, f"more than {MAX_KEY_FILE_BYTES} bytes")
    return data


def _unverified(reason: str) -> VerificationError:
    return VerificationError("EIF signature", reason)
