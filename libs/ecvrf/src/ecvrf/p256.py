# SPDX-License-Identifier: Apache-2.0
"""NIST P-256 by OpenSSL, through `cryptography`.

`cryptography` multiplies points (ECDH, key derivation: constant-time in OpenSSL) but gives only the x of an ECDH, and
adds no points. So secret scalars meet points in OpenSSL only: n * P is two ECDHs, for n and n + 1, whose x coordinates
settle the sign of y. The rest is done in Python's numbers on values that everybody can compute from the proof.

One thing is left: s = k + c x mod q has secret numbers in Python, which are not constant-time. They are multiplied by a
fresh random number before, so that the time tells about random numbers.

Source: RFC 9381 sections 5.4.1, 5.4.2.1 and 5.5; RFC 9380 section 8.2.
"""

from __future__ import annotations

import secrets

from cryptography.hazmat.primitives.asymmetric import ec

from ecvrf.errors import InvalidKeyError
from ecvrf.group import Secret
from ecvrf.hmac_nonce import rfc6979_nonce
from ecvrf.message_hash import hash_to_field
from ecvrf.weierstrass import COORDINATE_BYTES, POINT_BYTES, SCALAR_BYTES, Curve, Point

FIELD = 2**256 - 2**224 + 2**192 + 2**96 - 1
P256_CURVE = Curve(
    p=FIELD,
    a=-3 % FIELD,
    b=0x5AC635D8AA3A93E7B3EBBD55769886BC651D06B0CC53B0F63BCE3C3E27D2604B,
    order=0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551,
)
SSWU_Z = -10
DOMAIN = b"ECVRF_P256_XMD:SHA-256_SSWU_NU_"
OPENSSL_CURVE = ec.SECP256R1()


class P256:
    """The whole curve: its order is prime; see `group.Group`."""

    point_bytes = POINT_BYTES
    scalar_bytes = SCALAR_BYTES

    def load_secret(self, secret_key: bytes) -> Secret:
        if not self.is_valid_scalar(secret_key):
            raise InvalidKeyError("cannot use the secret key: it is not 32 bytes of a number from 1 to q - 1")
        return Secret(secret_key, secret_key)

    def nonce(self, secret: Secret, h: bytes) -> bytes:
        return rfc6979_nonce(secret.nonce_key, h, P256_CURVE.order)

    def multiply_base(self, scalar: bytes) -> bytes:
        return P256_CURVE.encode(_multiply_base(int.from_bytes(scalar, "big")))

    def multiply(self, scalar: bytes, point: bytes) -> bytes:
        return P256_CURVE.encode(_multiply(int.from_bytes(scalar, "big"), _decode(point)))

    def respond(self, k: bytes, c: bytes, x: bytes) -> bytes:
        q = P256_CURVE.order
        mask = secrets.randbelow(q - 1) + 1
        masked_k, masked_x = int.from_bytes(k, "big") * mask % q, int.from_bytes(x, "big") * mask % q
        s = (masked_k + int.from_bytes(c, "big") * masked_x) % q * pow(mask, -1, q) % q
        return s.to_bytes(SCALAR_BYTES, "big")

    def is_valid_point(self, point: bytes) -> bool:
        return P256_CURVE.decode(point) is not None

    def is_valid_scalar(self, scalar: bytes) -> bool:
        return len(scalar) == SCALAR_BYTES and 0 < int.from_bytes(scalar, "big") < P256_CURVE.order

    def combine(self, s: bytes, point: bytes | None, c: bytes, other: bytes) -> bytes | None:
        number = int.from_bytes(s, "big")
        total: Point | None = _multiply_base(number) if point is None else _multiply(number, _decode(point))
        if total is not None and any(c):
            product = _multiply(int.from_bytes(c, "big"), _decode(other))
            total = P256_CURVE.add(total, P256_CURVE.negate(product))
        return None if total is None else P256_CURVE.encode(total)

    def clear_cofactor(self, point: bytes) -> bytes:
        return point

    def point_of_hash(self, digest: bytes) -> bytes | None:
        encoded = b"\x02" + digest
        return encoded if P256_CURVE.decode(encoded) else None

    def point_of_message(self, message: bytes, suite_byte: int) -> bytes:
        u = hash_to_field(message, DOMAIN + bytes([suite_byte]), "sha256", P256_CURVE.p)
        return P256_CURVE.encode(P256_CURVE.map_sswu(u, SSWU_Z))


def _decode(encoded: bytes) -> Point:
    point = P256_CURVE.decode(encoded)
    if point is None:
        raise AssertionError("callers pass valid points")
    return point


def _multiply_base(number: int) -> Point:
    numbers = ec.derive_private_key(number, OPENSSL_CURVE).public_key().public_numbers()
    return numbers.x, numbers.y


def _multiply(number: int, point: Point) -> Point:
    """Return number * point for 1 <= number < q."""
    if number == 1:
        return point
    if number == P256_CURVE.order - 1:
        return P256_CURVE.negate(point)
    x, y = (value.to_bytes(COORDINATE_BYTES, "big") for value in point)
    peer = ec.EllipticCurvePublicKey.from_encoded_point(OPENSSL_CURVE, b"\x04" + x + y)
    products = (
        ec.derive_private_key(factor, OPENSSL_CURVE).exchange(ec.ECDH(), peer) for factor in (number, number + 1)
    )
    return P256_CURVE.pick_product(point, *(int.from_bytes(product, "big") for product in products))
