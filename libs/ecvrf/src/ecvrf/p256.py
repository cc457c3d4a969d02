# SPDX-License-Identifier: Apache-2.0
"""NIST P-256, by OpenSSL.

Source: RFC 9381 section 5.5; RFC 9380 section 8.2.
"""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric import ec

from ecvrf.message_hash import hash_to_field
from ecvrf.openssl_curve import OpensslCurve
from ecvrf.weierstrass import Curve

FIELD = 2**256 - 2**224 + 2**192 + 2**96 - 1
P256_CURVE = Curve(
    p=FIELD,
    a=-3 % FIELD,
    b=0x5AC635D8AA3A93E7B3EBBD55769886BC651D06B0CC53B0F63BCE3C3E27D2604B,
    order=0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551,
)
SSWU_Z = -10
DOMAIN = b"ECVRF_P256_XMD:SHA-256_SSWU_NU_"


class P256(OpensslCurve):
    """See `openssl_curve`."""

    def __init__(self) -> None:
        super().__init__(P256_CURVE, ec.SECP256R1())

    def point_of_message(self, message: bytes, suite_byte: int) -> bytes:
        u = hash_to_field(message, DOMAIN + bytes([suite_byte]), "sha256", P256_CURVE.p)
        return P256_CURVE.encode(P256_CURVE.map_sswu(u, SSWU_Z))
