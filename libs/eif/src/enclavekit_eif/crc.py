# SPDX-License-Identifier: Apache-2.0
"""Join CRC-32 values: pure. An EIF's CRC begins with its header, which is complete only when all else has been written.

Appending n zero bytes multiplies a CRC by x^(8n) modulo the polynomial; so crc(A || B) = crc(A) * x^(8|B|) + crc(B).
Source: zlib, crc32.c (crc32_combine); polynomials have the coefficient of x^0 in bit 31.
"""

from __future__ import annotations

POLYNOMIAL = 0xEDB88320
ONE = 1 << 31


def combine(left: int, right: int, right_bytes: int) -> int:
    """Return the CRC-32 of A || B from those of A (`left`) and B (`right`), and the length of B."""
    return _multiply(_power_of_x(8 * right_bytes), left) ^ right


def _multiply(left: int, right: int) -> int:
    product = 0
    for bit in range(31, -1, -1):
        if left >> bit & 1:
            product ^= right
        right = (right >> 1) ^ (POLYNOMIAL if right & 1 else 0)
    return product


def _power_of_x(exponent: int) -> int:
    power, square = ONE, ONE >> 1  # x^0, x^1
    while exponent:
        if exponent & 1:
            power = _multiply(square, power)
        square = _multiply(square, square)
        exponent >>= 1
    return power
