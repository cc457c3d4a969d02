# SPDX-License-Identifier: Apache-2.0
"""Every published vector, with its intermediate values where they are published."""

import pytest
from ecvrf import SECP256K1_SHA256_TAI, SUITES, EcvrfError

from .vectors import DRAFT_05, RFC_9381, SECP256K1


def unhex(*values):
    return [bytes.fromhex(value) for value in values]


def test_each_suite_of_the_rfc_has_its_three_examples():
    count = {name: sum(vector.suite == name for vector in RFC_9381) for name in SUITES}
    assert sorted(count.values()) == [0, 0, 0, 3, 3, 3, 3]


@pytest.mark.parametrize("vector", RFC_9381, ids=lambda vector: f"{vector.suite}-{vector.alpha[:8]}")
def test_rfc_9381(vector):
    suite = SUITES[vector.suite]
    secret_key, public_key, alpha, proof = unhex(vector.secret_key, vector.public_key, vector.alpha, vector.proof)
    assert suite.public_key(secret_key) == public_key
    h = suite.encode_to_curve(public_key, alpha)
    assert h.hex() == vector.h
    k = suite.group.nonce(suite.group.load_secret(secret_key), h)
    assert k.hex() == vector.k
    assert suite.group.multiply_base(k).hex() == vector.u
    assert suite.group.multiply(k, h).hex() == vector.v
    assert suite.prove(secret_key, alpha) == proof
    assert suite.verify(public_key, alpha, proof).hex() == vector.beta
    assert suite.proof_to_hash(proof).hex() == vector.beta


@pytest.mark.parametrize(("secret_key", "public_key", "proof", "beta"), SECP256K1)
def test_secp256k1(secret_key, public_key, proof, beta):
    suite, key = SECP256K1_SHA256_TAI, bytes.fromhex(secret_key.zfill(64))
    assert suite.public_key(key).hex() == public_key
    assert suite.prove(key, b"sample").hex() == proof
    assert suite.verify(*unhex(public_key), b"sample", *unhex(proof)).hex() == beta


@pytest.mark.parametrize(("name", "public_key", "alpha", "proof", "beta"), DRAFT_05)
def test_draft_05_proofs_are_read(name, public_key, alpha, proof, beta):
    public_key, alpha, proof = unhex(public_key, alpha, proof)
    suite = SUITES[name]
    assert suite.verify(public_key, alpha, proof).hex() == beta
    assert suite.proof_to_hash(proof).hex() == beta
    with pytest.raises(EcvrfError):
        SUITES[name.removesuffix("-draft-05")].verify(public_key, alpha, proof)
    with pytest.raises(EcvrfError, match="old proofs"):
        suite.prove(bytes(31) + b"\x01", alpha)
