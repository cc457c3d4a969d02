# SPDX-License-Identifier: Apache-2.0
"""Points that other Ed25519 code takes: of small or mixed order, and with a second encoding."""

import pytest
from ecvrf import EDWARDS25519_SHA512_ELL2, EDWARDS25519_SHA512_TAI, InvalidKeyError, InvalidProofError
from ecvrf.edwards25519 import Edwards25519, P

from .reference import EDWARDS25519, multiply

KEY = bytes(range(32))


def points_of_small_order():
    """Return the eight points, found by clearing the prime part of ordinary points."""
    found = {}
    number = 2
    while len(found) < 8:
        point = EDWARDS25519.decode(number.to_bytes(32, "little"))
        number += 1
        if point is not None:
            small = multiply(EDWARDS25519, EDWARDS25519.q, point)
            for factor in range(8):
                encoded = EDWARDS25519.encode(multiply(EDWARDS25519, factor, small))
                found[encoded] = EDWARDS25519.decode(encoded)
    return found


def second_encodings():
    """Return encodings of points with y at or above p, or of x = 0 with a sign."""
    for y in (P, P + 1, 2**255 - 1, *(P + step for step in range(2, 19))):
        for sign in (0, 1 << 255):
            yield (y | sign).to_bytes(32, "little")
    for y in (1, P - 1):
        yield (y | 1 << 255).to_bytes(32, "little")


@pytest.mark.parametrize("suite", [EDWARDS25519_SHA512_TAI, EDWARDS25519_SHA512_ELL2], ids=lambda suite: suite.name)
def test_keys_and_gammas_of_small_or_mixed_order_fail(suite):
    public_key, proof = suite.public_key(KEY), suite.prove(KEY, b"a")
    small = points_of_small_order()
    for encoded, torsion in small.items():
        mixed_key = EDWARDS25519.encode(EDWARDS25519.add(EDWARDS25519.decode(public_key), torsion))
        mixed_gamma = EDWARDS25519.encode(EDWARDS25519.add(EDWARDS25519.decode(proof[:32]), torsion))
        assert suite.group.is_valid_point(encoded) is False
        with pytest.raises(InvalidKeyError):
            suite.verify(encoded, b"a", proof)
        with pytest.raises(InvalidProofError):
            suite.verify(public_key, b"a", encoded + proof[32:])
        if mixed_key == public_key:
            continue  # the identity was added
        with pytest.raises(InvalidKeyError):
            suite.verify(mixed_key, b"a", proof)
        with pytest.raises(InvalidProofError, match="Gamma"):
            suite.verify(public_key, b"a", mixed_gamma + proof[32:])
        with pytest.raises(InvalidProofError, match="Gamma"):
            suite.proof_to_hash(mixed_gamma + proof[32:])


def test_second_encodings_fail():
    group, suite = Edwards25519(), EDWARDS25519_SHA512_TAI
    proof = suite.prove(KEY, b"a")
    for encoded in second_encodings():
        assert not group.is_valid_point(encoded)
        assert group.point_of_hash(encoded + bytes(32)) is None
        with pytest.raises(InvalidKeyError):
            suite.verify(encoded, b"a", proof)


def test_points_of_hashes_are_those_of_rfc_8032():
    """Which tries of try-and-increment give a point, and which one."""
    group = Edwards25519()
    for number in range(300):
        encoded = (number * 0x9E3779B97F4A7C15F39CC0605CEDC835 % 2**256).to_bytes(32, "little")
        point = EDWARDS25519.decode(encoded)
        expected = None if point is None else EDWARDS25519.encode(multiply(EDWARDS25519, 8, point))
        assert group.point_of_hash(encoded) == (None if expected == (1).to_bytes(32, "little") else expected)
