# SPDX-License-Identifier: Apache-2.0
"""Short Weierstrass curves in Python's numbers, for public values only: nothing here takes constant time. Pure.

Source: SEC 1 sections 2.3.3 and 2.3.4; RFC 9380 section 6.6.2 (simplified SWU).
"""

from __future__ import annotations

from dataclasses import dataclass

Point = tuple[int, int]  # affine; the identity is None where it can occur
COORDINATE_BYTES = SCALAR_BYTES = 32
POINT_BYTES = 1 + COORDINATE_BYTES


@dataclass(frozen=True, slots=True)
class Curve:
    """y^2 = x^3 + a x + b over a field of 256 bits with p = 3 mod 4; its points are of prime order."""

    p: int
    a: int
    b: int
    order: int

    def decode(self, encoded: bytes) -> Point | None:
        """Return the point of a compressed encoding; None if it is none."""
        if len(encoded) != POINT_BYTES or encoded[0] not in (2, 3):
            return None
        x = int.from_bytes(encoded[1:], "big")
        y = self.root(self.right_side(x)) if x < self.p else None
        if y is None:
            return None
        return x, y if y % 2 == encoded[0] % 2 else self.p - y

    def encode(self, point: Point) -> bytes:
        """Return the compressed encoding."""
        return bytes([2 + point[1] % 2]) + point[0].to_bytes(COORDINATE_BYTES, "big")

    def right_side(self, x: int) -> int:
        return (x * x * x + self.a * x + self.b) % self.p

    def root(self, value: int) -> int | None:
        root = pow(value, (self.p + 1) // 4, self.p)
        return root if root * root % self.p == value else None

    def negate(self, point: Point) -> Point:
        return point[0], -point[1] % self.p

    def add(self, one: Point, other: Point) -> Point | None:
        """Return the sum, None for the identity."""
        if one[0] == other[0]:
            if (one[1] + other[1]) % self.p == 0:
                return None
            slope = (3 * one[0] * one[0] + self.a) * pow(2 * one[1], -1, self.p)
        else:
            slope = (other[1] - one[1]) * pow(other[0] - one[0], -1, self.p)
        x = (slope * slope - one[0] - other[0]) % self.p
        return x, (slope * (one[0] - x) - one[1]) % self.p

    def pick_product(self, point: Point, x: int, next_x: int) -> Point:
        """Return n * point, given its x and that of (n + 1) * point; both products are not the identity, n is not 1.

        Of the two points with this x, the sum of the right one and `point` has `next_x`:
        (y - y0)^2 = (next_x + x + x0) (x - x0)^2, which needs no division.
        """
        y = self.root(self.right_side(x))
        if y is None:
            raise AssertionError("no point has this x")
        x0, y0 = point
        wanted = (next_x + x + x0) * (x - x0) ** 2 % self.p
        for candidate in (y, self.p - y):
            if (candidate - y0) ** 2 % self.p == wanted:
                return x, candidate
        raise AssertionError("these are not x coordinates of neighbouring multiples")

    def map_sswu(self, u: int, z: int) -> Point:
        """Return the point of the field element `u`, for the curve's constant `z`."""
        p, a, b = self.p, self.a, self.b
        zu2 = z * u * u % p
        denominator = (zu2 * zu2 + zu2) % p
        x = -b * pow(a, -1, p) * (1 + pow(denominator, -1, p)) % p if denominator else b * pow(z * a, -1, p) % p
        y = self.root(self.right_side(x))
        if y is None:
            x = zu2 * x % p
            y = self.root(self.right_side(x))
        if y is None:
            raise AssertionError("one of the two is a square")
        return x, y if y % 2 == u % 2 else p - y
