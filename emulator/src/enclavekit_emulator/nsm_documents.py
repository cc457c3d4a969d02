# SPDX-License-Identifier: Apache-2.0
"""Attestation documents as the NSM makes them: payload map in AWS's key order, COSE_Sign1 with ES384, untagged. Pure.

Source: the spec's section 5.1 and 5.2, seen in documents of real enclaves.
"""

from __future__ import annotations

from dataclasses import dataclass

import cbor2
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

PROTECTED_ES384 = bytes.fromhex("a1013822")  # {1: -35}
SCALAR_BYTES = 48


@dataclass(frozen=True, slots=True)
class DocumentFields:
    """What goes into one document. Sizes are checked by the service."""

    module_id: str
    timestamp_ms: int
    pcrs: dict[int, bytes]
    certificate_der: bytes
    bundle_der: tuple[bytes, ...]
    public_key: bytes | None
    user_data: bytes | None
    nonce: bytes | None


def encode_payload(fields: DocumentFields) -> bytes:
    """Return the payload: a definite map of nine, timestamp in eight bytes, absent options as null."""
    head = cbor2.dumps({"module_id": fields.module_id, "digest": "SHA384"})[1:]
    # real documents always spend eight bytes on the time; so does cbor2 for any time after 1970-02-20
    rest = cbor2.dumps(
        {
            "timestamp": fields.timestamp_ms,
            "pcrs": fields.pcrs,
            "certificate": fields.certificate_der,
            "cabundle": list(fields.bundle_der),
            "public_key": fields.public_key,
            "user_data": fields.user_data,
            "nonce": fields.nonce,
        }
    )[1:]
    return b"\xa9" + head + rest


def sign_document(payload: bytes, key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return the untagged COSE_Sign1 over `payload`; `key` is P-384."""
    to_be_signed = cbor2.dumps(["Signature1", PROTECTED_ES384, b"", payload])
    r, s = decode_dss_signature(key.sign(to_be_signed, ec.ECDSA(hashes.SHA384())))
    signature = r.to_bytes(SCALAR_BYTES, "big") + s.to_bytes(SCALAR_BYTES, "big")
    return cbor2.dumps([PROTECTED_ES384, {}, payload, signature])
