# SPDX-License-Identifier: Apache-2.0
"""ECVRF in plain Python numbers, as one writes it from the RFC: for comparison, and for the benchmark. Not for use:
it takes time that depends on secrets. It shares no code with the package.

Suites: P-256 and secp256k1 with try-and-increment, edwards25519 with try-and-increment.
"""

import hashlib
import hmac


class Weierstrass:
    """Jacobian coordinates (X, Y, Z); the identity has Z = 0."""

    big = "big"

    def __init__(self, p, a, b, q, base, suite, digest="sha256"):
        self.p, self.a, self.b, self.q, self.suite, self.digest = p, a, b, q, suite, digest
        self.base, self.cofactor = (*base, 1), 1

    identity = (1, 1, 0)

    def double(self, point):
        x, y, z = point
        p = self.p
        s, m = 4 * x * y * y % p, (3 * x * x + self.a * pow(z, 4, p)) % p
        t = (m * m - 2 * s) % p
        return t, (m * (s - t) - 8 * pow(y, 4, p)) % p, 2 * y * z % p

    def add(self, one, other):
        if not one[2]:
            return other
        if not other[2]:
            return one
        p = self.p
        (x1, y1, z1), (x2, y2, z2) = one, other
        u1, u2 = x1 * z2 * z2 % p, x2 * z1 * z1 % p
        s1, s2 = y1 * z2**3 % p, y2 * z1**3 % p
        if u1 == u2:
            return self.double(one) if s1 == s2 else self.identity
        h, r = u2 - u1, s2 - s1
        x = (r * r - h**3 - 2 * u1 * h * h) % p
        return x, (r * (u1 * h * h - x) - s1 * h**3) % p, h * z1 * z2 % p

    def negate(self, point):
        return point[0], -point[1] % self.p, point[2]

    def encode(self, point):
        z = pow(point[2], -1, self.p)
        x, y = point[0] * z * z % self.p, point[1] * z**3 % self.p
        return bytes([2 + y % 2]) + x.to_bytes(32, "big")

    def decode(self, encoded):
        x = int.from_bytes(encoded[1:], "big")
        square = (x**3 + self.a * x + self.b) % self.p
        y = pow(square, (self.p + 1) // 4, self.p)
        if x >= self.p or y * y % self.p != square:
            return None
        return x, y if y % 2 == encoded[0] % 2 else self.p - y, 1

    def of_hash(self, digest):
        return self.decode(b"\x02" + digest)

    def secret(self, key):
        return int.from_bytes(key, "big")

    def nonce(self, key, h):
        reduced = (int.from_bytes(hashlib.sha256(h).digest(), "big") % self.q).to_bytes(32, "big")
        k, v = bytes(32), b"\x01" * 32
        for separator in (0, 1):
            k = hmac.digest(k, v + bytes([separator]) + key + reduced, "sha256")
            v = hmac.digest(k, v, "sha256")
        return int.from_bytes(hmac.digest(k, v, "sha256"), "big")


class Edwards25519:
    """Extended coordinates (X, Y, Z, T)."""

    big, digest, suite, cofactor = "little", "sha512", 3, 8
    p = 2**255 - 19
    q = 2**252 + 27742317777372353535851937790883648493
    d = -121665 * pow(121666, -1, p) % p
    identity = (0, 1, 1, 0)

    def __init__(self):
        self.base = self.decode((4 * pow(5, -1, self.p) % self.p).to_bytes(32, "little"))

    def add(self, one, other):
        p = self.p
        (x1, y1, z1, t1), (x2, y2, z2, t2) = one, other
        a, b = (y1 - x1) * (y2 - x2) % p, (y1 + x1) * (y2 + x2) % p
        c, d = 2 * t1 * t2 * self.d % p, 2 * z1 * z2 % p
        e, f, g, h = b - a, d - c, d + c, b + a
        return e * f % p, g * h % p, f * g % p, e * h % p

    def double(self, point):
        return self.add(point, point)

    def negate(self, point):
        return -point[0] % self.p, point[1], point[2], -point[3] % self.p

    def encode(self, point):
        z = pow(point[2], -1, self.p)
        x, y = point[0] * z % self.p, point[1] * z % self.p
        return (y | (x & 1) << 255).to_bytes(32, "little")

    def decode(self, encoded):
        number = int.from_bytes(encoded, "little")
        y, sign = number & (2**255 - 1), number >> 255
        if y >= self.p:
            return None
        square = (y * y - 1) * pow(self.d * y * y + 1, -1, self.p) % self.p
        x = pow(square, (self.p + 3) // 8, self.p)
        if x * x % self.p != square:
            x = x * pow(2, (self.p - 1) // 4, self.p) % self.p
        if x * x % self.p != square or (x == 0 and sign):
            return None
        x = x if x % 2 == sign else self.p - x
        return x, y, 1, x * y % self.p

    def of_hash(self, digest):
        return self.decode(digest[:32])

    def secret(self, key):
        head = bytearray(hashlib.sha512(key).digest()[:32])
        head[0] &= 248
        head[31] = head[31] & 127 | 64
        return int.from_bytes(head, "little")

    def nonce(self, key, h):
        return int.from_bytes(hashlib.sha512(hashlib.sha512(key).digest()[32:] + h).digest(), "little") % self.q


P256 = Weierstrass(
    p=2**256 - 2**224 + 2**192 + 2**96 - 1,
    a=-3,
    b=0x5AC635D8AA3A93E7B3EBBD55769886BC651D06B0CC53B0F63BCE3C3E27D2604B,
    q=0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551,
    base=(
        0x6B17D1F2E12C4247F8BCE6E563A440F277037D812DEB33A0F4A13945D898C296,
        0x4FE342E2FE1A7F9B8EE7EB4A7C0F9E162BCE33576B315ECECBB6406837BF51F5,
    ),
    suite=1,
)
SECP256K1 = Weierstrass(
    p=2**256 - 2**32 - 977,
    a=0,
    b=7,
    q=0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141,
    base=(
        0x79BE667EF9DCBBAC55A06295CE870B07029BFCDB2DCE28D959F2815B16F81798,
        0x483ADA7726A3C4655DA4FBFC0E1108A8FD17B448A68554199C47D08FFB10D4B8,
    ),
    suite=254,
)
EDWARDS25519 = Edwards25519()


def multiply(curve, number, point):
    total = curve.identity
    while number:
        if number & 1:
            total = curve.add(total, point)
        point, number = curve.double(point), number >> 1
    return total


def hash_of(curve, separator, *parts):
    return hashlib.new(curve.digest, bytes([curve.suite, separator]) + b"".join(parts) + b"\0").digest()


def encode_to_curve(curve, public_key, alpha):
    for counter in range(256):
        point = curve.of_hash(hash_of(curve, 1, public_key, alpha, bytes([counter])))
        if point is not None:
            return multiply(curve, curve.cofactor, point)
    raise AssertionError("no point")


def prove(curve, secret_key, alpha):
    x = curve.secret(secret_key)
    public_key = curve.encode(multiply(curve, x, curve.base))
    h = encode_to_curve(curve, public_key, alpha)
    encoded, gamma = curve.encode(h), curve.encode(multiply(curve, x, h))
    k = curve.nonce(secret_key, encoded)
    u, v = curve.encode(multiply(curve, k, curve.base)), curve.encode(multiply(curve, k, h))
    c = hash_of(curve, 2, public_key, encoded, gamma, u, v)[:16]
    s = (k + int.from_bytes(c, curve.big) * x) % curve.q
    return gamma + c + s.to_bytes(32, curve.big)


def verify(curve, public_key, alpha, proof):
    """Return beta, or None."""
    size = len(public_key)
    c, s = int.from_bytes(proof[size : size + 16], curve.big), int.from_bytes(proof[size + 16 :], curve.big)
    y, gamma, h = curve.decode(public_key), curve.decode(proof[:size]), encode_to_curve(curve, public_key, alpha)
    if y is None or gamma is None or s >= curve.q:
        return None
    u = curve.add(multiply(curve, s, curve.base), curve.negate(multiply(curve, c, y)))
    v = curve.add(multiply(curve, s, h), curve.negate(multiply(curve, c, gamma)))
    points = (public_key, curve.encode(h), proof[:size], curve.encode(u), curve.encode(v))
    if hash_of(curve, 2, *points)[:16] != proof[size : size + 16]:
        return None
    return hash_of(curve, 3, curve.encode(multiply(curve, curve.cofactor, gamma)))
