# SPDX-License-Identifier: Apache-2.0
"""An index of a ramdisk's members: their fields, and hashes of their data block by block.

What is kept does not grow with the data but by 16 bytes per block of it: 5 GB take 1.3 MB. With it, the first block in
which two files differ is known without reading them side by side, in whatever order the archives have them.
"""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from enclavekit_eif.newc import CpioEntry, describe_name, iter_cpio

BLOCK_BYTES = 1 << 16
DIGEST_BYTES = 16
Key = tuple[bytes, int]
"""A name, and how many members of that name came before."""


@dataclass(frozen=True, slots=True)
class Member:
    fields: tuple[tuple[str, str], ...]
    """Field -> value as shown."""
    size: int
    blocks: bytes
    """DIGEST_BYTES for each block."""


def shown_key(key: Key) -> str:
    name, count = key
    return describe_name(name) + (f" (no. {count + 1})" if count else "")


def index_members(open_stream: Callable[[], io.BufferedReader]) -> dict[Key, Member]:
    """Return the members in the archive's order. Raises InputError."""
    found: dict[Key, Member] = {}
    counts: Counter[bytes] = Counter()
    with open_stream() as stream:
        for entry in iter_cpio(stream):
            blocks = bytearray()
            while block := entry.data.read(BLOCK_BYTES):
                blocks += hashlib.blake2b(block, digest_size=DIGEST_BYTES).digest()
            found[entry.name, counts[entry.name]] = Member(_fields(entry), entry.size, bytes(blocks))
            counts[entry.name] += 1
    return found


def read_blocks(open_stream: Callable[[], io.BufferedReader], wanted: dict[Key, int]) -> dict[Key, bytes]:
    """Return one block of each member that is wanted. Raises InputError."""
    found: dict[Key, bytes] = {}
    counts: Counter[bytes] = Counter()
    with open_stream() as stream:
        for entry in iter_cpio(stream):
            key = entry.name, counts[entry.name]
            counts[entry.name] += 1
            if key not in wanted:
                continue
            for _ in range(wanted[key]):
                entry.data.read(BLOCK_BYTES)
            found[key] = entry.data.read(BLOCK_BYTES)
            if len(found) == len(wanted):
                break
    return found


def first_differing_block(left: Member, right: Member) -> int | None:
    """Return the index of the first block in which the data of two members differs; None if it is the same."""
    if left.size == right.size and left.blocks == right.blocks:
        return None
    count = min(len(left.blocks), len(right.blocks))
    for start in range(0, count, DIGEST_BYTES):
        if left.blocks[start : start + DIGEST_BYTES] != right.blocks[start : start + DIGEST_BYTES]:
            return start // DIGEST_BYTES
    return count // DIGEST_BYTES


def _fields(entry: CpioEntry) -> tuple[tuple[str, str], ...]:
    return (
        ("mode", f"{entry.mode:o}"),
        ("uid", str(entry.uid)),
        ("gid", str(entry.gid)),
        ("mtime", str(entry.mtime)),
        ("size", str(entry.size)),
        ("nlink", str(entry.nlink)),
        ("ino", str(entry.ino)),
        ("dev", "{}:{}".format(*entry.dev)),
        ("rdev", "{}:{}".format(*entry.rdev)),
    )
