# SPDX-License-Identifier: Apache-2.0
"""The digest that copies are compared by: BLAKE3, of 32 bytes. Pure.

As hard to forge as SHA-256 and several times as fast; with that, hashing at both ends was a quarter of what moving a
large file cost. Source: https://github.com/BLAKE3-team/BLAKE3-specs
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Protocol

from enclavekit_core.errors import InputError

DIGEST_BYTES = 32


class Digest(Protocol):
    """What we use of a hash object of hashlib's kind."""

    def update(self, data: bytes | memoryview, /) -> object: ...
    def digest(self) -> bytes: ...
    def hexdigest(self) -> str: ...
    def copy(self) -> Digest: ...


def new_digest() -> Digest:
    """Raises InputError in an installation that lacks BLAKE3, which nothing but copies needs."""
    return _load()()


def digest_of(data: bytes | memoryview) -> bytes:
    """Raises as `new_digest` does."""
    digest = new_digest()
    digest.update(data)
    return digest.digest()


@functools.cache
def _load() -> Callable[[], Digest]:
    try:
        from blake3 import blake3
    except ImportError as exc:
        raise InputError("copy", "anything", "the Python package blake3 is not installed") from exc
    return blake3
