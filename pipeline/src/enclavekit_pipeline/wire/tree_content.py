# SPDX-License-Identifier: Apache-2.0
"""Digests of file contents, in two levels: BLAKE3 over the BLAKE3 of each chunk. Pure.

Chunks let a copy be resumed and differences be found; two levels let every byte be hashed once, though it is compared
by chunk and as a whole, and let a hole of a terabyte be hashed in no time.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

from enclavekit_pipeline.wire.digest import Digest, new_digest

MIN_CHUNK_BYTES = 1024 * 1024
MAX_CHUNKS = 65536  # hence at most 2 MiB of digests per file; from 64 GiB on chunks grow instead
ZERO_BLOCK = bytes(64 * 1024)


def chunk_bytes(size: int) -> int:
    """Return the size of the chunks of a file that was listed with `size` bytes."""
    return MIN_CHUNK_BYTES * max(1, -(-size // (MIN_CHUNK_BYTES * MAX_CHUNKS)))


@functools.lru_cache(maxsize=8)
def zero_digest(count: int) -> bytes:
    """Return the digest of `count` zero bytes."""
    digest = new_digest()
    _hash_zeros(digest, count)
    return digest.digest()


class ContentHash:
    """Digest and size of content that comes in order."""

    def __init__(self, chunk: int) -> None:
        self._chunk, self.size = chunk, 0
        self._whole = new_digest()
        self._part = new_digest()
        self._filled = 0

    @property
    def at_boundary(self) -> bool:
        """Whether the next byte begins a chunk."""
        return self._filled == 0

    def update(self, data: bytes | memoryview) -> None:
        if self._filled + len(data) < self._chunk:  # the usual case, without another view
            self._add(data)
            return
        view = memoryview(data)
        while len(view):
            part = view[: self._chunk - self._filled]
            self._add(part)
            view = view[len(part) :]

    def _add(self, data: bytes | memoryview) -> None:
        self._part.update(data)
        self.size += len(data)
        self._filled += len(data)
        if self._filled == self._chunk:
            self._close_chunk(self._part.digest())

    def _close_chunk(self, digest: bytes) -> None:
        self._whole.update(digest)
        self._part, self._filled = new_digest(), 0

    def zeros(self, count: int) -> None:
        """Count a hole."""
        while count:
            part = min(count, self._chunk - self._filled)
            if part == self._chunk:
                self._whole.update(zero_digest(part))
            else:
                _hash_zeros(self._part, part)
                self._filled += part
                if self._filled == self._chunk:
                    self._close_chunk(self._part.digest())
            self.size += part
            count -= part

    def keep(self, digests: Sequence[bytes], count: int) -> None:
        """Count chunks, `count` bytes in all, by their digests; only at a boundary, and a short chunk is the last."""
        for digest in digests:
            self._whole.update(digest)
        self.size += count

    def digest(self) -> bytes:
        if self._filled:
            whole = self._whole.copy()
            whole.update(self._part.digest())
            return whole.digest()
        return self._whole.digest()


def _hash_zeros(digest: Digest, count: int) -> None:
    for _ in range(count // len(ZERO_BLOCK)):
        digest.update(ZERO_BLOCK)
    digest.update(ZERO_BLOCK[: count % len(ZERO_BLOCK)])
