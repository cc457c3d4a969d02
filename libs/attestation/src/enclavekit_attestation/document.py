# SPDX-License-Identifier: Apache-2.0
"""An attestation document as received: its fields, well-formed but authenticated by nobody.

Whoever wants to rely on a field needs `verify.verify_document`. Pure.

Source: attestation_process.md of aws-nitro-enclaves-nsm-api, and the AWS-signed documents in tests/data: absent options
are null there, and the payload is a map of definite (to 2025) or indefinite (from 2026) length.
"""

from __future__ import annotations

from dataclasses import dataclass

from enclavekit_core.errors import VerificationError

from enclavekit_attestation.cose import Envelope, decode_envelope
from enclavekit_attestation.strict_cbor import CborError, Value, decode

CODE_PCRS = (0, 1, 2)  # image, kernel + framework, application
SIGNING_PCR = 8  # the certificate that signed the image; zero if it is not signed
MAX_PCRS = 32
PCR_SIZES = (32, 48, 64)  # AWS's grammar allows all three; SHA384 gives 48
MAX_CERTIFICATE_BYTES = 1024
MAX_CABUNDLE = 8  # AWS sends 4: root, regional, zonal, instance; the payload limit admits about 16
MAX_OPTION_BYTES = (
    1024  # the NSM takes this much of user_data, nonce and public_key, though some of AWS's texts say 512
)
DIGEST = "SHA384"
FIELDS = (
    "module_id",
    "digest",
    "timestamp",
    "pcrs",
    "certificate",
    "cabundle",
    "public_key",
    "user_data",
    "nonce",
)


@dataclass(frozen=True, slots=True)
class AttestationDocument:
    """A parsed, *unverified* document."""

    module_id: str
    timestamp_ms: int
    """Milliseconds since 1970 UTC, > 0."""
    pcrs: dict[int, bytes]
    """The locked PCRs: 0..15 and what the enclave locked besides."""
    certificate: bytes
    """The leaf, DER."""
    cabundle: tuple[bytes, ...]
    """Root, regional, zonal, instance; DER."""
    public_key: bytes | None
    user_data: bytes | None
    nonce: bytes | None
    envelope: Envelope
    """What the signature is over."""

    @property
    def is_debug(self) -> bool:
        """Whether PCR0, PCR1 and PCR2 are all zero, as in debug mode."""
        return all(index in self.pcrs and not any(self.pcrs[index]) for index in CODE_PCRS)


def parse_document(raw: bytes) -> AttestationDocument:
    """Parse an attestation document, which remains unverified.

    Args:
        raw: COSE_Sign1, tagged 18 or untagged; nothing before or after it.
    Raises:
        VerificationError: anything that AWS's grammar does not allow.
    """
    try:
        envelope = decode_envelope(raw)
        payload = decode(envelope.payload)
        if not isinstance(payload, dict):
            raise CborError("has a payload that is not a map")
        return _take_fields(payload, envelope)
    except CborError as exc:
        raise VerificationError("attestation document", f"it {exc}") from None


def _take_fields(payload: dict[int | str, Value], envelope: Envelope) -> AttestationDocument:
    for key in payload:
        if key not in FIELDS:
            raise CborError(f"has an unknown field {key!r:.40}")
    module_id, digest, timestamp = payload.get("module_id"), payload.get("digest"), payload.get("timestamp")
    if not isinstance(module_id, str) or not module_id:
        raise CborError("has no module_id")
    if not (module_id.isascii() and module_id.isprintable()):
        raise CborError("has a module_id that is not printable ASCII")
    if digest != DIGEST:
        raise CborError(f"has the digest {digest!r:.20} instead of {DIGEST!r}")
    if not isinstance(timestamp, int) or timestamp <= 0:
        raise CborError("has no timestamp")
    cabundle = payload.get("cabundle")
    if not isinstance(cabundle, list) or not 1 <= len(cabundle) <= MAX_CABUNDLE:
        raise CborError(f"has no cabundle of 1 to {MAX_CABUNDLE} certificates")
    return AttestationDocument(
        module_id=module_id,
        timestamp_ms=timestamp,
        pcrs=_take_pcrs(payload.get("pcrs")),
        certificate=_take_bytes("certificate", payload.get("certificate"), 1, MAX_CERTIFICATE_BYTES),
        cabundle=tuple(_take_bytes("cabundle", item, 1, MAX_CERTIFICATE_BYTES) for item in cabundle),
        public_key=_take_option("public_key", payload, least=1),
        user_data=_take_option("user_data", payload),
        nonce=_take_option("nonce", payload),
        envelope=envelope,
    )


def _take_pcrs(value: Value) -> dict[int, bytes]:
    if not isinstance(value, dict) or not 1 <= len(value) <= MAX_PCRS:
        raise CborError(f"has no map of 1 to {MAX_PCRS} PCRs")
    pcrs: dict[int, bytes] = {}
    for index, content in value.items():
        if not isinstance(index, int) or not 0 <= index < MAX_PCRS:
            raise CborError(f"has a PCR with the index {index!r:.20}")
        if not isinstance(content, bytes) or len(content) not in PCR_SIZES:
            raise CborError(f"has a PCR{index} that is not a digest")
        pcrs[index] = content
    return pcrs


def _take_option(name: str, payload: dict[int | str, Value], least: int = 0) -> bytes | None:
    """Return an optional field: absent and null are the same, an empty byte string is not."""
    value = payload.get(name)
    return None if value is None else _take_bytes(name, value, least, MAX_OPTION_BYTES)


def _take_bytes(name: str, value: Value, least: int, most: int) -> bytes:
    if not isinstance(value, bytes) or not least <= len(value) <= most:
        raise CborError(f"has a {name} that is not {least} to {most} bytes")
    return value
