# SPDX-License-Identifier: Apache-2.0
"""The suites. A suite's library is imported when the suite is first used."""

from __future__ import annotations

from ecvrf.errors import MissingLibraryError
from ecvrf.group import Group
from ecvrf.suite import Suite


def _edwards25519() -> Group:
    try:
        from ecvrf.edwards25519 import Edwards25519
    except ImportError as exc:
        raise MissingLibraryError("PyNaCl", "edwards25519") from exc
    return Edwards25519()


def _p256() -> Group:
    try:
        from ecvrf.p256 import P256
    except ImportError as exc:
        raise MissingLibraryError("cryptography", "p256") from exc
    return P256()


def _secp256k1() -> Group:
    try:
        from ecvrf.secp256k1 import Secp256k1
    except ImportError:
        return _secp256k1_by_openssl()
    return Secp256k1()


def _secp256k1_by_openssl() -> Group:
    try:
        from ecvrf.secp256k1_openssl import Secp256k1ByOpenssl
    except ImportError as exc:
        raise MissingLibraryError("cryptography", "secp256k1") from exc
    return Secp256k1ByOpenssl()


# RFC 9381 section 5.5
P256_SHA256_TAI = Suite("ECVRF-P256-SHA256-TAI", 0x01, _p256, "sha256", True)
P256_SHA256_SSWU = Suite("ECVRF-P256-SHA256-SSWU", 0x02, _p256, "sha256", False)
EDWARDS25519_SHA512_TAI = Suite("ECVRF-EDWARDS25519-SHA512-TAI", 0x03, _edwards25519, "sha512", True)
EDWARDS25519_SHA512_ELL2 = Suite("ECVRF-EDWARDS25519-SHA512-ELL2", 0x04, _edwards25519, "sha512", False)
# not in the RFC: the curve and the byte that programs have agreed upon, with the steps of the RFC
SECP256K1_SHA256_TAI = Suite("ECVRF-SECP256K1-SHA256-TAI", 0xFE, _secp256k1, "sha256", True)
# draft-irtf-cfrg-vrf-05, as the crate `vrf` 0.2 and 0.3 (there named P256_SHA256_TAI and SECP256K1_SHA256_TAI)
P256_SHA256_TAI_DRAFT_05 = Suite("ECVRF-P256-SHA256-TAI-draft-05", 0x01, _p256, "sha256", True, draft_05=True)
SECP256K1_SHA256_TAI_DRAFT_05 = Suite(
    "ECVRF-SECP256K1-SHA256-TAI-draft-05", 0xFE, _secp256k1, "sha256", True, draft_05=True
)

SUITES = {
    suite.name: suite
    for suite in (
        P256_SHA256_TAI,
        P256_SHA256_SSWU,
        EDWARDS25519_SHA512_TAI,
        EDWARDS25519_SHA512_ELL2,
        SECP256K1_SHA256_TAI,
        P256_SHA256_TAI_DRAFT_05,
        SECP256K1_SHA256_TAI_DRAFT_05,
    )
}
