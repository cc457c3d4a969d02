# SPDX-License-Identifier: Apache-2.0
"""Signatures made elsewhere: what is to be signed goes out, the signature comes back. Pure.

The request is the Sig_structure of RFC 9052, 4.4, over PCR0. Its bytes depend on the image and on the curve of the key,
and on nothing else: not on the certificate, not on the clock.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass

from cryptography.hazmat.primitives import hashes
from enclavekit_core.errors import InputError, VerificationError

from enclavekit_eif.signature import (
    Algorithm,
    EifSignature,
    algorithm_of,
    decode_signature,
    raw_signature,
    register_payload,
    signature_section,
    signed_message,
    verify_signature,
)


@dataclass(frozen=True, slots=True)
class SigningRequest:
    algorithm: Algorithm
    message: bytes
    """The Sig_structure: what a tool that hashes by itself signs."""

    @property
    def digest(self) -> bytes:
        """The message's hash: what a tool that takes a digest signs."""
        digest = hashes.Hash(self.algorithm.hash)
        digest.update(self.message)
        return digest.finalize()


def signing_request(algorithm: Algorithm, pcr0: bytes) -> SigningRequest:
    """Return what the owner of a key of this algorithm has to sign."""
    return SigningRequest(algorithm, signed_message(algorithm.protected, register_payload(pcr0)))


@dataclass(frozen=True, slots=True)
class DetachedSigner:
    """A signature that was made elsewhere."""

    certificate_pem: bytes
    signature: bytes
    """r || s as COSE has it, or DER as OpenSSL and KMS make it, or either in base64."""

    def sign(self, pcr0: bytes) -> bytes:
        """Return the section. Raises VerificationError if the signature is not one of this PCR0 by this certificate."""
        algorithm = algorithm_of(EifSignature(self.certificate_pem, b"").certificate())
        forms = _raw_forms(self.signature, algorithm)
        if not forms:
            raise InputError(
                "read",
                "signature",
                f"neither DER nor {2 * algorithm.size} bytes of r and s, as the certificate's key makes",
            )
        refusal: VerificationError | None = None
        for raw in forms:
            section = signature_section(self.certificate_pem, algorithm, pcr0, raw)
            try:
                verify_signature(decode_signature(section), pcr0)
                return section
            except VerificationError as exc:
                refusal = exc
        assert refusal is not None
        raise VerificationError("EIF signature", "it is not one of this image by the certificate's key") from refusal


def _raw_forms(data: bytes, algorithm: Algorithm) -> list[bytes]:
    """Return what `data` can mean. A short DER signature may have the length of r || s, so both are tried."""
    found = []
    candidates = [data]
    try:
        candidates.append(base64.b64decode(b"".join(data.split()), validate=True))
    except binascii.Error:
        pass  # not base64: most signatures are not
    for candidate in candidates:
        if len(candidate) == 2 * algorithm.size:
            found.append(candidate)
        try:
            found.append(raw_signature(candidate, algorithm))
        except InputError:
            continue
    return found
