# SPDX-License-Identifier: Apache-2.0
"""Hashing a message to a field element. Pure; the time taken depends on public values only.

Source: RFC 9380 sections 5.2 and 5.3.1.
"""

from __future__ import annotations

import hashlib

FIELD_HASH_BYTES = 48  # L: 256 bits of the field and 128 more, so that the result is close to uniform


def hash_to_field(message: bytes, domain: bytes, digest: str, prime: int) -> int:
    """Return the first (and only) element of hash_to_field with count 1."""
    return int.from_bytes(expand_message_xmd(message, domain, FIELD_HASH_BYTES, digest), "big") % prime


def expand_message_xmd(message: bytes, domain: bytes, length: int, digest: str) -> bytes:
    """Return `length` bytes made of `message` under `domain` (at most 255 bytes)."""
    new = hashlib.new(digest)
    blocks = -(-length // new.digest_size)
    suffix = domain + bytes([len(domain)])
    first = hashlib.new(digest, bytes(new.block_size) + message + length.to_bytes(2, "big") + b"\0" + suffix).digest()
    block, out = bytes(new.digest_size), b""
    for number in range(1, blocks + 1):
        mixed = bytes(a ^ b for a, b in zip(first, block, strict=True))
        block = hashlib.new(digest, mixed + bytes([number]) + suffix).digest()
        out += block
    return out[:length]
