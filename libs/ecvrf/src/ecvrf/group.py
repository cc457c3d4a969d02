# SPDX-License-Identifier: Apache-2.0
"""What a suite needs of a curve. Points and scalars are encoded byte strings everywhere, as in the libraries."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Secret:
    """A secret key, ready for use."""

    scalar: bytes = field(repr=False)
    """x of the RFC."""
    nonce_key: bytes = field(repr=False)
    """What nonces are derived from."""


class Group(Protocol):
    """A curve's group of prime order. Methods that take secrets say so; the others may take variable time."""

    point_bytes: int
    scalar_bytes: int

    def load_secret(self, secret_key: bytes) -> Secret:
        """Read a secret key. Raises InvalidKeyError."""

    def nonce(self, secret: Secret, h: bytes) -> bytes:
        """Return the scalar k for the point `h` (section 5.4.2). Secret in, secret out."""

    def multiply_base(self, scalar: bytes) -> bytes:
        """Return scalar * B for a secret scalar."""

    def multiply(self, scalar: bytes, point: bytes) -> bytes:
        """Return scalar * point for a secret scalar and a valid point; the result is public."""

    def respond(self, k: bytes, c: bytes, x: bytes) -> bytes:
        """Return (k + c * x) mod q for secret k and x, and the public challenge c (16 bytes)."""

    def is_valid_point(self, point: bytes) -> bool:
        """Whether `point` is the one encoding of an element of the group other than the identity."""

    def is_valid_scalar(self, scalar: bytes) -> bool:
        """Whether `scalar` is the encoding of a number from 1 to q - 1."""

    def combine(self, s: bytes, point: bytes | None, c: bytes, other: bytes) -> bytes | None:
        """Return s * point - c * other, all of it public and valid; point None is B; None is the identity."""

    def point_of_hash(self, digest: bytes) -> bytes | None:
        """Return the point that a try of try-and-increment gives, cofactor cleared; None if there is none."""

    def point_of_message(self, message: bytes, suite_byte: int) -> bytes:
        """Return encode_to_curve of RFC 9380 in its nonuniform form, cofactor cleared."""

    def clear_cofactor(self, point: bytes) -> bytes:
        """Return the valid point times the cofactor."""
