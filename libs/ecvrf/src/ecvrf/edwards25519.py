# SPDX-License-Identifier: Apache-2.0
"""edwards25519 by libsodium.

Secret scalars and what is computed from them stay in libsodium, whose arithmetic is constant-time. Python's numbers
appear only where a message becomes a point (Elligator 2, canonical encodings): there the time depends on alpha.

Source: RFC 9381 sections 5.4.1.2, 5.4.2.2, 5.5; RFC 9380 sections 6.7.1 and 6.8.2; RFC 8032 section 5.1.3.
"""

from __future__ import annotations

import hashlib

from nacl import bindings as sodium
from nacl.exceptions import CryptoError

from ecvrf.errors import InvalidKeyError
from ecvrf.group import Secret
from ecvrf.message_hash import hash_to_field

P = 2**255 - 19
ORDER = 2**252 + 27742317777372353535851937790883648493
J = 486662  # of curve25519, y^2 = x^3 + J x^2 + x
ROOT_OF_MINUS_1 = pow(2, (P - 1) // 4, P)
POINT_BYTES = SCALAR_BYTES = SEED_BYTES = 32
IDENTITY = b"\x01" + bytes(31)
DOMAIN = b"ECVRF_edwards25519_XMD:SHA-512_ELL2_NU_"


class Edwards25519:
    """The group of order q; see `group.Group`."""

    point_bytes = POINT_BYTES
    scalar_bytes = SCALAR_BYTES

    def load_secret(self, secret_key: bytes) -> Secret:
        if len(secret_key) != SEED_BYTES:
            raise InvalidKeyError(f"cannot use a secret key of {len(secret_key)} bytes: edwards25519 has {SEED_BYTES}")
        digest = hashlib.sha512(secret_key).digest()
        clamped = bytes([digest[0] & 0xF8]) + digest[1:31] + bytes([digest[31] & 0x7F | 0x40])
        # mod q, which is the same for points of order q, and the form that all functions of libsodium take
        return Secret(sodium.crypto_core_ed25519_scalar_reduce(clamped + bytes(32)), digest[32:])

    def nonce(self, secret: Secret, h: bytes) -> bytes:
        return sodium.crypto_core_ed25519_scalar_reduce(hashlib.sha512(secret.nonce_key + h).digest())

    def multiply_base(self, scalar: bytes) -> bytes:
        return sodium.crypto_scalarmult_ed25519_base_noclamp(scalar)

    def multiply(self, scalar: bytes, point: bytes) -> bytes:
        return sodium.crypto_scalarmult_ed25519_noclamp(scalar, point)

    def respond(self, k: bytes, c: bytes, x: bytes) -> bytes:
        product = sodium.crypto_core_ed25519_scalar_mul(c + bytes(SCALAR_BYTES - len(c)), x)
        return sodium.crypto_core_ed25519_scalar_add(k, product)

    def is_valid_point(self, point: bytes) -> bool:
        # of prime order, hence not the identity either; PyNaCl before 1.6.2 had a libsodium that missed some others
        return len(point) == POINT_BYTES and sodium.crypto_core_ed25519_is_valid_point(point)

    def is_valid_scalar(self, scalar: bytes) -> bool:
        return len(scalar) == SCALAR_BYTES and 0 < int.from_bytes(scalar, "little") < ORDER

    def combine(self, s: bytes, point: bytes | None, c: bytes, other: bytes) -> bytes | None:
        first = self.multiply_base(s) if point is None else self.multiply(s, point)
        if not any(c):
            return first
        second = self.multiply(c + bytes(SCALAR_BYTES - len(c)), other)
        result = sodium.crypto_core_ed25519_sub(first, second)
        return None if result == IDENTITY else result

    def clear_cofactor(self, point: bytes) -> bytes:
        for _ in range(3):
            point = sodium.crypto_core_ed25519_add(point, point)
        return point

    def point_of_hash(self, digest: bytes) -> bytes | None:
        encoded = digest[:POINT_BYTES]
        if int.from_bytes(encoded, "little") & (2**255 - 1) >= P:
            return None  # RFC 8032 refuses these, libsodium's addition would take them
        try:
            point = self.clear_cofactor(encoded)
        except (CryptoError, ValueError, RuntimeError):  # no point of the curve; PyNaCl has used each of them
            return None
        return None if point == IDENTITY else point

    def point_of_message(self, message: bytes, suite_byte: int) -> bytes:
        u = hash_to_field(message, DOMAIN + bytes([suite_byte]), "sha512", P)
        return self.clear_cofactor(encode_point(*map_to_curve(u)))


def map_to_curve(u: int) -> tuple[int, int]:
    """Elligator 2, and from curve25519 to the edwards curve: return (x, y)."""
    denominator = (1 + 2 * u * u) % P
    s = -J * pow(denominator, -1, P) % P if denominator else -J % P
    square = (s * s * s + J * s * s + s) % P
    t = square_root(square)
    odd = 1
    if t is None:
        s = (-s - J) % P
        t, odd = square_root((s * s * s + J * s * s + s) % P), 0
    if t is None:
        raise AssertionError("one of the two is a square")
    if t % 2 != odd:
        t = -t % P
    if t == 0 or s == P - 1:
        return 0, 1
    x = ROOT_OF_MINUS_486664 * s * pow(t, -1, P) % P
    return x, (s - 1) * pow(s + 1, -1, P) % P


def square_root(value: int) -> int | None:
    """Return a root of `value` mod P; None if it has none."""
    root = pow(value, (P + 3) // 8, P)
    if root * root % P == value:
        return root
    root = root * ROOT_OF_MINUS_1 % P
    return root if root * root % P == value else None


def encode_point(x: int, y: int) -> bytes:
    """Return the encoding of RFC 8032 section 5.1.2."""
    return (y | (x & 1) << 255).to_bytes(POINT_BYTES, "little")


def _even_root(value: int) -> int:
    root = square_root(value % P)
    assert root is not None
    return root if root % 2 == 0 else P - root


ROOT_OF_MINUS_486664 = _even_root(-486664)
