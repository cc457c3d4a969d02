# SPDX-License-Identifier: Apache-2.0
"""What holds for every suite: agreement with plain Python, and refusal of all that differs by a bit."""

import dataclasses
import random

import pytest
from ecvrf import (
    EDWARDS25519_SHA512_TAI,
    P256_SHA256_TAI,
    SECP256K1_SHA256_TAI,
    SUITES,
    EcvrfError,
    InvalidKeyError,
    InvalidProofError,
)
from ecvrf.secp256k1_openssl import Secp256k1ByOpenssl
from hypothesis import given, settings
from hypothesis import strategies as st

from . import reference

# what SECP256K1_SHA256_TAI is where coincurve is not installed
BY_OPENSSL = dataclasses.replace(SECP256K1_SHA256_TAI, name="SECP256K1-by-OpenSSL", load_group=Secp256k1ByOpenssl)
MAKERS = [*(suite for suite in SUITES.values() if not suite.draft_05), BY_OPENSSL]
REFERENCES = [
    (EDWARDS25519_SHA512_TAI, reference.EDWARDS25519),
    (P256_SHA256_TAI, reference.P256),
    (SECP256K1_SHA256_TAI, reference.SECP256K1),
    (BY_OPENSSL, reference.SECP256K1),
]
KEY = bytes(range(1, 33))  # a valid secret key of every suite
name_of = {"ids": lambda value: getattr(value, "name", "")}


def made(suite, alpha=b"alpha"):
    return suite.public_key(KEY), suite.prove(KEY, alpha)


def flips(data):
    """Yield `data` with each of its bits changed."""
    for position in range(8 * len(data)):
        changed = bytearray(data)
        changed[position // 8] ^= 1 << position % 8
        yield bytes(changed)


@pytest.mark.parametrize(("suite", "curve"), REFERENCES, **name_of)
@given(key=st.binary(min_size=32, max_size=32), alpha=st.binary(max_size=200))
@settings(max_examples=10)
def test_agrees_with_plain_python(suite, curve, key, alpha):
    if not 0 < int.from_bytes(key, "big") < 2**256 - 2**225:
        key = KEY
    proof, public_key = suite.prove(key, alpha), suite.public_key(key)
    assert proof == reference.prove(curve, key, alpha)
    assert suite.verify(public_key, alpha, proof) == reference.verify(curve, public_key, alpha, proof) is not None


@pytest.mark.parametrize("suite", MAKERS, **name_of)
def test_output_depends_on_key_and_alpha_only(suite):
    public_key, proof = made(suite)
    beta = suite.verify(public_key, b"alpha", proof)
    assert suite.prove(KEY, b"alpha") == proof
    assert len(proof) == suite.proof_bytes
    others = {suite.proof_to_hash(suite.prove(KEY, alpha)) for alpha in (b"", b"alphb", b"alpha\0", bytes(5000))}
    others.add(suite.proof_to_hash(suite.prove(KEY[::-1], b"alpha")))
    assert len(others | {beta}) == 6


@pytest.mark.parametrize("suite", MAKERS, **name_of)
def test_sampled_flipped_bits_fail(suite):
    public_key, proof = made(suite)
    pick = random.Random(suite.name)
    for changed in pick.sample(list(flips(proof)), 60):
        with pytest.raises(InvalidProofError):
            suite.verify(public_key, b"alpha", changed)
    for changed in pick.sample(list(flips(public_key)), 30):
        with pytest.raises(EcvrfError):
            suite.verify(changed, b"alpha", proof)
    for changed in flips(b"alpha"):
        with pytest.raises(InvalidProofError, match="not by this key"):
            suite.verify(public_key, changed, proof)


@pytest.mark.long
@pytest.mark.parametrize("suite", MAKERS, **name_of)
def test_every_flipped_bit_fails(suite):
    public_key, proof = made(suite)
    for changed in flips(proof):
        with pytest.raises(InvalidProofError):
            suite.verify(public_key, b"alpha", changed)
    for changed in flips(public_key):
        with pytest.raises(EcvrfError):
            suite.verify(changed, b"alpha", proof)


@pytest.mark.parametrize("suite", MAKERS, **name_of)
def test_other_lengths_fail(suite):
    public_key, proof = made(suite)
    for length in range(len(proof)):
        with pytest.raises(InvalidProofError):
            suite.verify(public_key, b"alpha", proof[:length])
        with pytest.raises(InvalidProofError):
            suite.proof_to_hash(proof[:length])
    with pytest.raises(InvalidProofError):
        suite.verify(public_key, b"alpha", proof + b"\0")
    for length in range(len(public_key)):
        with pytest.raises(InvalidKeyError):
            suite.verify(public_key[:length], b"alpha", proof)
    for key in (public_key + b"\0", b"\x04" + bytes(64), b"\0" * len(public_key), b"\xff" * len(public_key)):
        with pytest.raises(InvalidKeyError):
            suite.verify(key, b"alpha", proof)


@pytest.mark.parametrize("suite", SUITES.values(), **name_of)
@given(data=st.binary(min_size=80, max_size=81), key=st.binary(min_size=32, max_size=33), alpha=st.binary(max_size=9))
@settings(max_examples=30)
def test_anything_else_fails_with_our_error(suite, data, key, alpha):
    with pytest.raises(EcvrfError):
        suite.verify(key, alpha, data)
    with pytest.raises(EcvrfError):
        suite.verify(suite.group.multiply_base(KEY[:31] + b"\x01"), alpha, data)


@pytest.mark.parametrize(("suite", "curve"), REFERENCES, **name_of)
def test_scalars_above_the_order_fail(suite, curve):
    """s + q is the same scalar, and would be a second proof."""
    public_key, proof = made(suite)
    head, s = proof[:-32], int.from_bytes(proof[-32:], curve.big)
    for other in (s + curve.q, 0, curve.q, 2**256 - 1):
        if other < 2**256:
            with pytest.raises(InvalidProofError, match="s is not"):
                suite.verify(public_key, b"alpha", head + other.to_bytes(32, curve.big))


@pytest.mark.parametrize("suite", MAKERS, **name_of)
def test_proofs_of_other_suites_fail(suite):
    public_key, proof = made(suite)
    for other in SUITES.values():
        if (other.suite_byte, other.draft_05) != (suite.suite_byte, suite.draft_05):
            with pytest.raises(EcvrfError):
                other.verify(public_key, b"alpha", proof)


@pytest.mark.parametrize("suite", MAKERS, **name_of)
def test_secret_keys_of_other_sizes_fail(suite):
    for key in (b"", KEY[1:], KEY + b"\0"):
        with pytest.raises(InvalidKeyError):
            suite.public_key(key)


@pytest.mark.parametrize(("suite", "curve"), REFERENCES[1:], **name_of)
def test_secret_keys_are_from_1_to_q_minus_1(suite, curve):
    for number in (0, curve.q, 2**256 - 1):
        with pytest.raises(InvalidKeyError):
            suite.prove(number.to_bytes(32, "big"), b"")
    for number in (1, 2, curve.q - 2, curve.q - 1):
        key = number.to_bytes(32, "big")
        proof = suite.prove(key, b"edge")
        assert proof == reference.prove(curve, key, b"edge")
        assert suite.verify(suite.public_key(key), b"edge", proof)


@pytest.mark.parametrize(("suite", "curve"), REFERENCES[1:], **name_of)
def test_points_have_one_encoding(suite, curve):
    """x + p is the same coordinate and fits into 32 bytes for small x; and there are uncompressed and hybrid forms."""
    small = next(x for x in range(1, 100) if suite.group.is_valid_point(b"\x02" + x.to_bytes(32, "big")))
    x = (small + curve.p).to_bytes(32, "big")
    proof = made(suite)[1]
    for first in range(256):
        assert not suite.group.is_valid_point(bytes([first]) + x)
        assert suite.group.is_valid_point(bytes([first]) + small.to_bytes(32, "big")) is (first in (2, 3))
    y = curve.decode(b"\x02" + small.to_bytes(32, "big"))[1].to_bytes(32, "big")
    for encoded in (b"\x02" + x, b"\x04" + x + y, b"\x06" + x + y):
        with pytest.raises(InvalidKeyError):
            suite.verify(encoded, b"alpha", proof)
    assert suite.group.point_of_hash(x) is None


def test_secrets_are_not_shown():
    for suite in MAKERS:
        shown = repr(suite.group.load_secret(KEY))
        assert KEY.hex() not in shown
        assert repr(KEY) not in shown
