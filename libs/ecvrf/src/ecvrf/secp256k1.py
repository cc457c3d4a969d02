# SPDX-License-Identifier: Apache-2.0
"""secp256k1 by libsecp256k1 (coincurve), with the help of OpenSSL for one secret step.

libsecp256k1 is constant-time for k * B, for scalars and for ECDH; its n * P is not, so only verification uses that.
Its ECDH in coincurve's interface gives SHA-256 of the compressed point. Hence a secret n times P: OpenSSL's ECDH has
the x, libsecp256k1's hash tells which of the two points with this x it is; and the two libraries confirm each other.

Source: RFC 9381 sections 5.4.1.1 and 5.4.2.1, which define no suite for this curve but all steps of one.
"""

from __future__ import annotations

import hashlib

from coincurve import PrivateKey, PublicKey
from cryptography.hazmat.primitives.asymmetric import ec

from ecvrf.errors import InvalidKeyError
from ecvrf.group import Secret
from ecvrf.hmac_nonce import rfc6979_nonce
from ecvrf.weierstrass import POINT_BYTES, SCALAR_BYTES

ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
OPENSSL_CURVE = ec.SECP256K1()


class Secp256k1:
    """The whole curve: its order is prime; see `group.Group`."""

    point_bytes = POINT_BYTES
    scalar_bytes = SCALAR_BYTES

    def load_secret(self, secret_key: bytes) -> Secret:
        if not self.is_valid_scalar(secret_key):
            raise InvalidKeyError("cannot use the secret key: it is not 32 bytes of a number from 1 to q - 1")
        return Secret(secret_key, secret_key)

    def nonce(self, secret: Secret, h: bytes) -> bytes:
        return rfc6979_nonce(secret.nonce_key, h, ORDER)

    def multiply_base(self, scalar: bytes) -> bytes:
        return PublicKey.from_valid_secret(scalar).format()

    def multiply(self, scalar: bytes, point: bytes) -> bytes:
        peer = ec.EllipticCurvePublicKey.from_encoded_point(OPENSSL_CURVE, point)
        x = ec.derive_private_key(int.from_bytes(scalar, "big"), OPENSSL_CURVE).exchange(ec.ECDH(), peer)
        digest = PrivateKey(scalar).ecdh(point)
        for candidate in (b"\x02" + x, b"\x03" + x):
            if hashlib.sha256(candidate).digest() == digest:
                return candidate
        raise AssertionError("OpenSSL and libsecp256k1 disagree")

    def respond(self, k: bytes, c: bytes, x: bytes) -> bytes:
        return PrivateKey(x).multiply(c.rjust(SCALAR_BYTES, b"\0")).add(k).secret

    def is_valid_point(self, point: bytes) -> bool:
        if len(point) != POINT_BYTES:
            return False  # the library takes uncompressed points, too
        try:
            PublicKey(point)
        except ValueError:
            return False
        return True

    def is_valid_scalar(self, scalar: bytes) -> bool:
        return len(scalar) == SCALAR_BYTES and 0 < int.from_bytes(scalar, "big") < ORDER

    def combine(self, s: bytes, point: bytes | None, c: bytes, other: bytes) -> bytes | None:
        first = PublicKey.from_valid_secret(s) if point is None else PublicKey(point).multiply(s)
        if not any(c):
            return first.format()
        minus_c = (ORDER - int.from_bytes(c, "big")).to_bytes(SCALAR_BYTES, "big")
        try:
            return PublicKey.combine_keys([first, PublicKey(other).multiply(minus_c)]).format()
        except ValueError:  # the sum is the identity
            return None

    def clear_cofactor(self, point: bytes) -> bytes:
        return point

    def point_of_hash(self, digest: bytes) -> bytes | None:
        encoded = b"\x02" + digest
        return encoded if self.is_valid_point(encoded) else None

    def point_of_message(self, message: bytes, suite_byte: int) -> bytes:
        raise NotImplementedError("no suite hashes to this curve otherwise than by try and increment")
