# SPDX-License-Identifier: Apache-2.0
"""One digest for a directory: a Merkle tree over names, types, modes and contents. Pure.

    directory  SHA3-512 of "enclavekit-tree-v1\\0" and its entries, sorted by name:
                 u8 kind, u16 mode, u16 length of the name, the name, 64 bytes of digest; big-endian
    file       digest: SHA3-512 of its content, as in the bucket `fs_hashes`
    link       digest: SHA3-512 of its target's path; the mode is 0, for Linux has none
    other      FIFO, socket, device: 64 zero bytes

The tag at its front keeps a directory from being passed off as a file of the same digest, and each entry has its
length, so that two different directories never have the same bytes to hash. Owner and times are not covered.
"""

from __future__ import annotations

import enum
import hashlib
import struct
from collections.abc import Iterable

from msgspec import Struct

from enclavekit_core.errors import LocalProtocolError

TAG = b"enclavekit-tree-v1\0"
DIGEST_BYTES = 64
MODE_BITS = 0o7777
NO_DIGEST = bytes(DIGEST_BYTES)
_HEAD = struct.Struct(">BHH")


class Kind(enum.IntEnum):
    FILE, DIRECTORY, LINK, OTHER = 1, 2, 3, 4


class TreeEntry(Struct, frozen=True, gc=False):  # there are many: the collector has nothing to find in them
    """One name in a directory."""

    name: bytes
    """1..255 bytes without slash or NUL."""
    kind: Kind
    mode: int
    """Permission bits with set-uid, set-gid and sticky; what is above them is dropped."""
    digest: bytes


def digest_of_directory(entries: Iterable[TreeEntry]) -> bytes:
    """Return the digest of a directory with these entries, in any order.

    Raises LocalProtocolError for what no directory can hold: a name twice, an empty one, one with a slash.
    """
    sha3, previous = hashlib.sha3_512(TAG), b""
    for entry in sorted(entries, key=lambda entry: entry.name):
        name = entry.name
        if name == previous or name in (b".", b"..") or not name or b"/" in name or b"\0" in name:
            raise LocalProtocolError(f"cannot digest directory: {name[:100]!r} is twice in it, or is no name")
        if len(entry.digest) != DIGEST_BYTES:
            raise LocalProtocolError(f"cannot digest directory: {name[:100]!r} has a digest of another length")
        mode = 0 if entry.kind is Kind.LINK else entry.mode & MODE_BITS
        sha3.update(_HEAD.pack(entry.kind, mode, len(name)) + name + entry.digest)
        previous = name
    return sha3.digest()


def digest_of_link(target: bytes) -> bytes:
    """Return the digest of a symbolic link that points to `target`."""
    return hashlib.sha3_512(target).digest()
