# SPDX-License-Identifier: Apache-2.0
"""secp256k1 by OpenSSL alone, where coincurve is not installed: as in the enclave's framework, which stays without it.

The proofs are the same; making one takes longer, and s is computed as on P-256. See `openssl_curve`.

Source: SEC 2 section 2.4.1.
"""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric import ec

from ecvrf.openssl_curve import OpensslCurve
from ecvrf.weierstrass import Curve

SECP256K1_CURVE = Curve(
    p=2**256 - 2**32 - 977,
    a=0,
    b=7,
    order=0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141,
)


class Secp256k1ByOpenssl(OpensslCurve):
    """See `openssl_curve`."""

    def __init__(self) -> None:
        super().__init__(SECP256K1_CURVE, ec.SECP256K1())
