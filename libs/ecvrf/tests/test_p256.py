# SPDX-License-Identifier: Apache-2.0
"""What P-256 needs beyond its vectors: the products that OpenSSL gives only half of, and the simplified SWU map."""

import pytest
from ecvrf.message_hash import expand_message_xmd
from ecvrf.p256 import P256, P256_CURVE, SSWU_Z
from hypothesis import given, settings
from hypothesis import strategies as st

from . import reference

Q = P256_CURVE.order
SCALARS = st.one_of(st.integers(1, Q - 1), st.sampled_from([1, 2, 3, Q - 1, Q - 2, Q // 2, Q // 2 + 1]))


def plain(number, encoded):
    return reference.P256.encode(reference.multiply(reference.P256, number, reference.P256.decode(encoded)))


@given(n=SCALARS, m=SCALARS)
@settings(max_examples=25)
def test_products_have_the_right_sign(n, m):
    group = P256()
    point = group.multiply_base(m.to_bytes(32, "big"))
    assert group.multiply(n.to_bytes(32, "big"), point) == plain(n, point)


@given(k=SCALARS, x=SCALARS, c=st.integers(0, 2**128 - 1))
def test_masked_response_is_the_plain_one(k, x, c):
    s = P256().respond(k.to_bytes(32, "big"), c.to_bytes(16, "big"), x.to_bytes(32, "big"))
    assert int.from_bytes(s, "big") == (k + c * x) % Q


def test_combination_that_is_the_identity_is_none():
    group = P256()
    two, one = (2).to_bytes(32, "big"), (1).to_bytes(16, "big")
    assert group.combine(two, None, one, group.multiply_base(two)) is None
    assert group.combine(two, None, bytes(16), group.multiply_base(two)) == group.multiply_base(two)


def test_map_of_the_exceptional_field_elements_is_on_the_curve():
    for u in (0, 1, P256_CURVE.p - 1):
        x, y = P256_CURVE.map_sswu(u, SSWU_Z)
        assert y * y % P256_CURVE.p == P256_CURVE.right_side(x)


@pytest.mark.parametrize(
    ("message", "length", "expected"),
    [
        # RFC 9380 appendix K.1, DST QUUX-V01-CS02-with-expander-SHA256-128
        (b"", 0x20, "68a985b87eb6b46952128911f2a4412bbc302a9d759667f87f7a21d803f07235"),
        (b"abc", 0x20, "d8ccab23b5985ccea865c6c97b6e5b8350e794e603b4b97902f53a8a0d605615"),
    ],
)
def test_expand_message_xmd(message, length, expected):
    domain = b"QUUX-V01-CS02-with-expander-SHA256-128"
    assert expand_message_xmd(message, domain, length, "sha256").hex() == expected
