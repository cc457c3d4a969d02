# SPDX-License-Identifier: Apache-2.0
"""Compare two ramdisks: members, their fields and data, the order of members, and how they are compressed."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator

from enclavekit_eif.archive_index import (
    BLOCK_BYTES,
    Key,
    Member,
    first_differing_block,
    index_members,
    read_blocks,
    shown_key,
)
from enclavekit_eif.compression import compression_of, open_ramdisk
from enclavekit_eif.difference import ABSENT, PRESENT, Difference, excerpt, first_difference

MAX_SHOWN = 1000  # differences per ramdisk: who has more of them looks at another problem first
MAX_LOCATED = 200  # files whose first difference is looked up: two blocks of 64 KiB are held for each
GZIP_HEADER = (("flags", 3, 4), ("mtime", 4, 8), ("extra flags", 8, 9), ("operating system", 9, 10))  # RFC 1952, 2.3

Opener = Callable[[], io.BufferedReader]


def diff_ramdisks(section: str, left: Opener, right: Opener) -> Iterator[Difference]:
    """Yield what differs between two ramdisks whose stored bytes differ. Raises InputError."""
    here, there = index_members(left), index_members(right)
    count = 0
    for difference in _diff_members(section, left, right, here, there):
        count += 1
        if count > MAX_SHOWN:
            yield Difference(section, "", f"more than {MAX_SHOWN} differences; the others are not shown")
            return
        yield difference
    packing = list(_diff_packing(section, left, right))
    yield from packing
    if not count and not packing:
        yield Difference(section, "", "the archive's bytes", "the same members", "in another packing")


def _diff_members(
    section: str, left: Opener, right: Opener, here: dict[Key, Member], there: dict[Key, Member]
) -> Iterator[Difference]:
    common = [key for key in here if key in there]
    same_order = common == [key for key in there if key in here]
    same_names = len(common) == len(here) == len(there)
    for key in here:
        if key not in there:
            yield Difference(section, shown_key(key), "member", PRESENT, ABSENT)
    for key in there:
        if key not in here:
            yield Difference(section, shown_key(key), "member", ABSENT, PRESENT)
    if not same_order:
        yield from _diff_order(section, [key for key in here if key in there], [key for key in there if key in here])
    located = _locate(left, right, here, there, common)
    for key in common:
        one, other = here[key], there[key]
        for (name, value), (_, other_value) in zip(one.fields, other.fields, strict=True):
            # numbers count up in the order of members: another order or one more of them moves all that follow
            if value != other_value and (name != "ino" or (same_order and same_names)):
                yield Difference(section, shown_key(key), name, value, other_value)
        if first_differing_block(one, other) is not None:
            yield _content(section, key, located)


def _diff_order(section: str, here: list[Key], there: list[Key]) -> Iterator[Difference]:
    for position, (one, other) in enumerate(zip(here, there, strict=True)):
        if one != other:
            yield Difference(
                section, "", f"order of members, from no. {position + 1}", shown_key(one), shown_key(other)
            )
            return


def _content(section: str, key: Key, located: dict[Key, tuple[int, str, str]]) -> Difference:
    if key not in located:
        return Difference(section, shown_key(key), "content")
    offset, left, right = located[key]
    return Difference(section, shown_key(key), f"content at {offset}", left, right)


def _locate(
    left: Opener, right: Opener, here: dict[Key, Member], there: dict[Key, Member], common: list[Key]
) -> dict[Key, tuple[int, str, str]]:
    """Return the offset and both excerpts for members whose data differs, the first MAX_LOCATED of them."""
    wanted: dict[Key, int] = {}
    for key in common:
        block = first_differing_block(here[key], there[key])
        if block is not None and len(wanted) < MAX_LOCATED:
            wanted[key] = block
    if not wanted:
        return {}
    ours, theirs = read_blocks(left, wanted), read_blocks(right, wanted)
    found = {}
    for key, block in wanted.items():
        offset = first_difference(ours[key], theirs[key]) or 0
        found[key] = block * BLOCK_BYTES + offset, excerpt(ours[key], offset), excerpt(theirs[key], offset)
    return found


def _diff_packing(section: str, left: Opener, right: Opener) -> Iterator[Difference]:
    """Tell differences of the compression: its kind, its header, or just how well it packs."""
    with left() as one, right() as other:
        here, there = one.peek(16)[:16], other.peek(16)[:16]
    kinds = compression_of(here), compression_of(there)
    if kinds[0] != kinds[1]:
        yield Difference(section, "", "compression", *(kind or "none" for kind in kinds))
        return
    if not kinds[0]:
        return
    if kinds[0] == "gzip":
        for name, start, end in GZIP_HEADER:
            numbers = int.from_bytes(here[start:end], "little"), int.from_bytes(there[start:end], "little")
            if numbers[0] != numbers[1]:
                yield Difference(section, "", f"gzip header: {name}", str(numbers[0]), str(numbers[1]))
    if _same_unpacked(left, right):
        yield Difference(section, "", f"{kinds[0]} only: what it unpacks to is the same", _stored(left), _stored(right))


def _same_unpacked(left: Opener, right: Opener) -> bool:
    def digest(opener: Opener) -> bytes:
        hasher = hashlib.blake2b()
        with opener() as stored, open_ramdisk(stored) as source:
            while chunk := source.read(1 << 20):
                hasher.update(chunk)
        return hasher.digest()

    return digest(left) == digest(right)


def _stored(opener: Opener) -> str:
    with opener() as stored:
        size = 0
        while chunk := stored.read(1 << 20):
            size += len(chunk)
    return f"{size} bytes"
