# SPDX-License-Identifier: Apache-2.0
"""Proofs: made, verified, and hashed. The same steps for all suites; what differs is data.

    proof pi = Gamma (a point) | c (16 bytes) | s (a scalar)         beta, the output, is a hash of Gamma

Source: RFC 9381 section 5, and draft-irtf-cfrg-vrf-05 section 5, whose hash inputs lack the last byte and whose
challenge lacks the public key.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from ecvrf.errors import EcvrfError, InvalidKeyError, InvalidProofError
from ecvrf.group import Group

CHALLENGE_BYTES = 16
MAX_TRIES = 256  # each fails with probability 1/2
ENCODE, CHALLENGE, OUTPUT = b"\x01", b"\x02", b"\x03"  # domain separators, front
BACK = b"\x00"  # domain separator, back


@dataclass(frozen=True)
class Suite:
    """One cipher suite; thread-safe. Keys, alpha, proofs and outputs are bytes."""

    name: str
    suite_byte: int
    load_group: Callable[[], Group]
    digest: str
    """Name for hashlib."""
    try_and_increment: bool
    draft_05: bool = False
    """Verifies what programs of before RFC 9381 made, and makes nothing."""

    @cached_property
    def group(self) -> Group:
        """The curve. Raises MissingLibraryError."""
        return self.load_group()

    @property
    def proof_bytes(self) -> int:
        return self.group.point_bytes + CHALLENGE_BYTES + self.group.scalar_bytes

    def public_key(self, secret_key: bytes) -> bytes:
        """Return the public key of a secret key. Raises InvalidKeyError."""
        return self.group.multiply_base(self.group.load_secret(secret_key).scalar)

    def prove(self, secret_key: bytes, alpha: bytes) -> bytes:
        """Return the proof of `secret_key` over `alpha`, always the same one (RFC 9381 section 5.1).

        Raises: InvalidKeyError; EcvrfError for a draft-05 suite.
        """
        if self.draft_05:
            raise EcvrfError(f"cannot prove with {self.name}: it is for reading old proofs")
        group, secret = self.group, self.group.load_secret(secret_key)
        public_key = group.multiply_base(secret.scalar)
        h = self.encode_to_curve(public_key, alpha)
        gamma = group.multiply(secret.scalar, h)
        k = group.nonce(secret, h)
        c = self._challenge(public_key, h, gamma, group.multiply_base(k), group.multiply(k, h))
        return gamma + c + group.respond(k, c, secret.scalar)

    def verify(self, public_key: bytes, alpha: bytes, proof: bytes) -> bytes:
        """Return the output (beta) if `proof` holds for `public_key` and `alpha` (RFC 9381 section 5.3).

        The public key is always validated. Stricter than the RFC on edwards25519: a key or Gamma with a component of
        small order is refused, where the RFC clears it; no honest prover makes one, and thus a proof has one form.

        Raises: InvalidKeyError, InvalidProofError.
        """
        gamma, c, s = self._split(proof)
        group = self.group
        if not group.is_valid_point(public_key):
            raise InvalidKeyError(f"cannot verify with {self.name}: the public key is no point of the curve's group")
        h = self.encode_to_curve(public_key, alpha)
        u, v = group.combine(s, None, c, public_key), group.combine(s, h, c, gamma)
        if u is None or v is None or not hmac.compare_digest(c, self._challenge(public_key, h, gamma, u, v)):
            raise InvalidProofError(f"cannot verify with {self.name}: the proof is not by this key over this alpha")
        return self._output(gamma)

    def proof_to_hash(self, proof: bytes) -> bytes:
        """Return the output (beta) of a proof that the caller made or has verified. Raises InvalidProofError."""
        return self._output(self._split(proof)[0])

    def encode_to_curve(self, public_key: bytes, alpha: bytes) -> bytes:
        """Return the point H of `alpha` under a valid `public_key` (RFC 9381 section 5.4.1)."""
        if not self.try_and_increment:
            return self.group.point_of_message(public_key + alpha, self.suite_byte)
        front = hashlib.new(self.digest, bytes([self.suite_byte]) + ENCODE + public_key + alpha)
        for counter in range(MAX_TRIES):
            attempt = front.copy()
            attempt.update(bytes([counter]) + self._back)
            point = self.group.point_of_hash(attempt.digest())
            if point is not None:
                return point
        raise EcvrfError(f"cannot encode to the curve of {self.name}: {MAX_TRIES} tries failed")  # once in 2**256

    @property
    def _back(self) -> bytes:
        return b"" if self.draft_05 else BACK

    def _split(self, proof: bytes) -> tuple[bytes, bytes, bytes]:
        """Return (Gamma, c, s), of the right sizes and in range. Raises InvalidProofError."""
        if len(proof) != self.proof_bytes:
            raise InvalidProofError(f"cannot read a proof of {self.name}: {len(proof)} bytes, not {self.proof_bytes}")
        end = self.group.point_bytes
        gamma, c, s = proof[:end], proof[end : end + CHALLENGE_BYTES], proof[end + CHALLENGE_BYTES :]
        if not self.group.is_valid_point(gamma):
            raise InvalidProofError(f"cannot read a proof of {self.name}: Gamma is no point of the curve's group")
        if not self.group.is_valid_scalar(s):
            raise InvalidProofError(f"cannot read a proof of {self.name}: s is not from 1 to q - 1")
        return gamma, c, s

    def _challenge(self, public_key: bytes, *points: bytes) -> bytes:
        parts = points if self.draft_05 else (public_key, *points)
        text = bytes([self.suite_byte]) + CHALLENGE + b"".join(parts) + self._back
        return hashlib.new(self.digest, text).digest()[:CHALLENGE_BYTES]

    def _output(self, gamma: bytes) -> bytes:
        """Hash the point Gamma times the cofactor."""
        cleared = self.group.clear_cofactor(gamma)
        return hashlib.new(self.digest, bytes([self.suite_byte]) + OUTPUT + cleared + self._back).digest()
