# SPDX-License-Identifier: Apache-2.0
"""Short Weierstrass curves of prime order by OpenSSL, through `cryptography`.

`cryptography` multiplies points (ECDH, key derivation: constant-time in OpenSSL) but gives only the x of an ECDH, and
adds no points. So secret scalars meet points in OpenSSL only: n * P is two ECDHs, for n and n + 1, whose x coordinates
settle the sign of y. The rest is done in Python's numbers on values that everybody can compute from the proof.

One thing is left: s = k + c x mod q has secret numbers in Python, which are not constant-time. They are multiplied by a
fresh random number before, so that the time tells about random numbers.

Source: RFC 9381 sections 5.4.1.1, 5.4.2.1 and 5.5.
"""

from __future__ import annotations

import secrets

from cryptography.hazmat.primitives.asymmetric import ec

from ecvrf.errors import InvalidKeyError
from ecvrf.group import Secret
from ecvrf.hmac_nonce import rfc6979_nonce
from ecvrf.weierstrass import COORDINATE_BYTES, POINT_BYTES, SCALAR_BYTES, Curve, Point


class OpensslCurve:
    """The whole curve: its order is prime; see `group.Group`."""

    point_bytes = POINT_BYTES
    scalar_bytes = SCALAR_BYTES

    def __init__(self, curve: Curve, openssl_curve: ec.EllipticCurve) -> None:
        self._curve, self._openssl_curve = curve, openssl_curve

    def load_secret(self, secret_key: bytes) -> Secret:
        if not self.is_valid_scalar(secret_key):
            raise InvalidKeyError("cannot use the secret key: it is not 32 bytes of a number from 1 to q - 1")
        return Secret(secret_key, secret_key)

    def nonce(self, secret: Secret, h: bytes) -> bytes:
        return rfc6979_nonce(secret.nonce_key, h, self._curve.order)

    def multiply_base(self, scalar: bytes) -> bytes:
        return self._curve.encode(self._multiply_base(int.from_bytes(scalar, "big")))

    def multiply(self, scalar: bytes, point: bytes) -> bytes:
        return self._curve.encode(self._multiply(int.from_bytes(scalar, "big"), self._decode(point)))

    def respond(self, k: bytes, c: bytes, x: bytes) -> bytes:
        q = self._curve.order
        mask = secrets.randbelow(q - 1) + 1
        masked_k, masked_x = int.from_bytes(k, "big") * mask % q, int.from_bytes(x, "big") * mask % q
        s = (masked_k + int.from_bytes(c, "big") * masked_x) % q * pow(mask, -1, q) % q
        return s.to_bytes(SCALAR_BYTES, "big")

    def is_valid_point(self, point: bytes) -> bool:
        return self._curve.decode(point) is not None

    def is_valid_scalar(self, scalar: bytes) -> bool:
        return len(scalar) == SCALAR_BYTES and 0 < int.from_bytes(scalar, "big") < self._curve.order

    def combine(self, s: bytes, point: bytes | None, c: bytes, other: bytes) -> bytes | None:
        number = int.from_bytes(s, "big")
        total: Point | None = (
            self._multiply_base(number) if point is None else self._multiply(number, self._decode(point))
        )
        if total is not None and any(c):
            product = self._multiply(int.from_bytes(c, "big"), self._decode(other))
            total = self._curve.add(total, self._curve.negate(product))
        return None if total is None else self._curve.encode(total)

    def clear_cofactor(self, point: bytes) -> bytes:
        return point

    def point_of_hash(self, digest: bytes) -> bytes | None:
        encoded = b"\x02" + digest
        return encoded if self._curve.decode(encoded) else None

    def point_of_message(self, message: bytes, suite_byte: int) -> bytes:
        raise NotImplementedError("no suite hashes to this curve otherwise than by try and increment")

    def _decode(self, encoded: bytes) -> Point:
        point = self._curve.decode(encoded)
        if point is None:
            raise AssertionError("callers pass valid points")
        return point

    def _multiply_base(self, number: int) -> Point:
        numbers = ec.derive_private_key(number, self._openssl_curve).public_key().public_numbers()
        return numbers.x, numbers.y

    def _multiply(self, number: int, point: Point) -> Point:
        """Return number * point for 1 <= number < q."""
        if number == 1:
            return point
        if number == self._curve.order - 1:
            return self._curve.negate(point)
        x, y = (value.to_bytes(COORDINATE_BYTES, "big") for value in point)
        peer = ec.EllipticCurvePublicKey.from_encoded_point(self._openssl_curve, b"\x04" + x + y)
        products = (
            ec.derive_private_key(factor, self._openssl_curve).exchange(ec.ECDH(), peer)
            for factor in (number, number + 1)
        )
        return self._curve.pick_product(point, *(int.from_bytes(product, "big") for product in products))
