# SPDX-License-Identifier: Apache-2.0
"""Deterministic nonces for the curves of 256 bits. Pure.

HMAC does the work on the secret; a comparison with q leaks one bit that is the same for all but one in 2**32 nonces.

Source: RFC 6979 section 3.2 with SHA-256, as RFC 9381 section 5.4.2.1 uses it.
"""

from __future__ import annotations

import hashlib
import hmac

from ecvrf.weierstrass import SCALAR_BYTES


def rfc6979_nonce(x: bytes, message: bytes, order: int) -> bytes:
    """Return k for the secret scalar `x` (32 bytes) and `message`, from 1 to `order` - 1."""
    reduced = int.from_bytes(hashlib.sha256(message).digest(), "big") % order
    seed = x + reduced.to_bytes(SCALAR_BYTES, "big")
    key, value = bytes(32), b"\x01" * 32
    for separator in (b"\x00", b"\x01"):
        key = hmac.digest(key, value + separator + seed, "sha256")
        value = hmac.digest(key, value, "sha256")
    while True:
        value = hmac.digest(key, value, "sha256")
        if 0 < int.from_bytes(value, "big") < order:
            return value
        key = hmac.digest(key, value + b"\x00", "sha256")
        value = hmac.digest(key, value, "sha256")
