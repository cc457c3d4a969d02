# SPDX-License-Identifier: Apache-2.0
"""COSE_Sign1 as the NSM makes it: the envelope, and its ES384 signature.

    [tag 18] 84 | 44 a1 01 38 22 | a0 | bstr payload | 58 60 signature: r || s, 48 bytes each, big-endian

The bytes around the payload are not signed, so exactly one form of them is accepted (tag 18 present or not).
Signed are `["Signature1", protected, h'', payload]`, with the payload's bytes as received.

Source: RFC 9052 section 4; every AWS-signed document in tests/data.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from enclavekit_core.errors import VerificationError

from enclavekit_attestation.strict_cbor import CborError, Reader

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

TAG_COSE_SIGN1 = 0xD2
ARRAY_OF_FOUR = 0x84
EMPTY_MAP = 0xA0
PROTECTED_ES384 = bytes.fromhex("a1013822")  # {1: -35}
COORDINATE_BYTES = 48  # P-384
MAX_PAYLOAD_BYTES = 16384  # AWS, attestation_process.md
MAX_DOCUMENT_BYTES = MAX_PAYLOAD_BYTES + 128  # and the envelope


@dataclass(frozen=True, slots=True)
class Envelope:
    """A COSE_Sign1 that is well-formed; nobody has checked the signature."""

    payload: bytes
    signature: bytes
    """r || s, 96 bytes."""

    @property
    def signed_bytes(self) -> bytes:
        """The Sig_structure over which the signature is made."""
        return (
            b"\x84\x6aSignature1\x44" + PROTECTED_ES384 + b"\x40" + encode_bytes_head(len(self.payload)) + self.payload
        )


def decode_envelope(raw: bytes) -> Envelope:
    """Decode a COSE_Sign1, tagged or not. Raises CborError."""
    if len(raw) > MAX_DOCUMENT_BYTES:
        raise CborError(f"has {len(raw)} bytes, more than {MAX_DOCUMENT_BYTES}")
    reader = Reader(raw, require_minimal=True)
    first = reader.take_byte()
    if first == TAG_COSE_SIGN1:
        first = reader.take_byte()
    if first != ARRAY_OF_FOUR:
        raise CborError("is not a COSE_Sign1")
    if reader.take_bytes() != PROTECTED_ES384:
        raise CborError("has other protected headers than {1: -35} (ES384)")
    if reader.take_byte() != EMPTY_MAP:
        raise CborError("has unprotected headers")
    payload = reader.take_bytes()
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise CborError(f"has a payload of {len(payload)} bytes, more than {MAX_PAYLOAD_BYTES}")
    signature = reader.take_bytes()
    if len(signature) != 2 * COORDINATE_BYTES:
        raise CborError(f"has a signature of {len(signature)} bytes instead of {2 * COORDINATE_BYTES}")
    reader.expect_end()
    return Envelope(payload, signature)


def encode_bytes_head(length: int) -> bytes:
    """Return the head of a byte string of `length` bytes, 0..MAX_PAYLOAD_BYTES, in its shortest form."""
    if length < 24:
        return bytes([0x40 + length])
    if length < 0x100:
        return b"\x58" + length.to_bytes(1, "big")
    return b"\x59" + length.to_bytes(2, "big")


def verify_signature(envelope: Envelope, key: EllipticCurvePublicKey) -> None:
    """Check the signature with the P-384 `key` of the leaf. Raises VerificationError."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ec import ECDSA
    from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
    from cryptography.hazmat.primitives.hashes import SHA384

    r = int.from_bytes(envelope.signature[:COORDINATE_BYTES], "big")
    s = int.from_bytes(envelope.signature[COORDINATE_BYTES:], "big")
    try:
        key.verify(encode_dss_signature(r, s), envelope.signed_bytes, ECDSA(SHA384()))
    except InvalidSignature:
        raise VerificationError("signature", "it is not by the leaf certificate's key over this payload") from None
