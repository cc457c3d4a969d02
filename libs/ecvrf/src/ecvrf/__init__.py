# SPDX-License-Identifier: Apache-2.0
"""Verifiable random functions on elliptic curves: RFC 9381."""

from ecvrf.errors import EcvrfError, InvalidKeyError, InvalidProofError, MissingLibraryError
from ecvrf.suite import Suite
from ecvrf.suites import (
    EDWARDS25519_SHA512_ELL2,
    EDWARDS25519_SHA512_TAI,
    P256_SHA256_SSWU,
    P256_SHA256_TAI,
    P256_SHA256_TAI_DRAFT_05,
    SECP256K1_SHA256_TAI,
    SECP256K1_SHA256_TAI_DRAFT_05,
    SUITES,
)

__all__ = [
    "EDWARDS25519_SHA512_ELL2",
    "EDWARDS25519_SHA512_TAI",
    "P256_SHA256_SSWU",
    "P256_SHA256_TAI",
    "P256_SHA256_TAI_DRAFT_05",
    "SECP256K1_SHA256_TAI",
    "SECP256K1_SHA256_TAI_DRAFT_05",
    "SUITES",
    "EcvrfError",
    "InvalidKeyError",
    "InvalidProofError",
    "MissingLibraryError",
    "Suite",
]
