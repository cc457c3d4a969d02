# SPDX-License-Identifier: Apache-2.0
"""One difference between two images, and small comparisons of texts and trees of values: pure."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

ABSENT = "absent"
PRESENT = "present"
EXCERPT_BYTES = 24  # shown from the first difference on
LEAD_BYTES = 8  # and before it


@dataclass(frozen=True, slots=True)
class Difference:
    section: str
    """`header`, `kernel`, `cmdline`, `metadata`, `signature`, `ramdisk N` counted from 0."""
    member: str = ""
    """Name in the archive, key path in the metadata; empty for the section as a whole."""
    field: str = ""
    """What of it differs, e.g. `mtime` or `content at 17`."""
    left: str = ""
    right: str = ""


def render_difference(difference: Difference) -> str:
    """Return it as one line: `ramdisk 1: rootfs/app: mtime: 0 -> 1700000000`."""
    parts = [part for part in (difference.section, difference.member, difference.field) if part]
    if difference.left or difference.right:
        parts.append(f"{difference.left} -> {difference.right}")
    return printable(": ".join(parts))


def printable(text: str) -> str:
    """Return `text` with what a terminal would act on escaped: images choose their names, and strangers make images."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def first_difference(left: bytes, right: bytes) -> int | None:
    """Return the offset of the first byte that differs, the shorter one's length if it is the other's start."""
    if left == right:
        return None
    same, end = 0, min(len(left), len(right))  # left[:same] is equal; what differs is before `end`, or `end` itself
    while same < end:  # by halves: slices compare much faster than bytes one by one
        middle = (same + end + 1) // 2
        if left[same:middle] == right[same:middle]:
            same = middle
        else:
            end = middle - 1
    return same


def excerpt(data: bytes, offset: int) -> str:
    """Return what is around `offset`: as text if it is text, else in hex from there on."""
    if offset >= len(data):
        return "the end"
    start = max(0, offset - LEAD_BYTES)
    around = data[start : offset + EXCERPT_BYTES]
    try:
        text = around.decode()
    except UnicodeDecodeError:
        text = ""
    if text and all(char.isprintable() or char in "\n\t\r" for char in text):
        return repr(text)
    return data[offset : offset + EXCERPT_BYTES // 2].hex(" ")


def diff_words(section: str, left: str, right: str) -> Iterator[Difference]:
    """Compare two command lines word by word."""
    here, there = left.split(" "), right.split(" ")
    for tag, i1, i2, j1, j2 in difflib.SequenceMatcher(None, here, there, autojunk=False).get_opcodes():
        if tag == "equal":
            continue
        place = f"word {i1 + 1}" if i2 - i1 <= 1 else f"words {i1 + 1} to {i2}"
        yield Difference(section, "", place, " ".join(here[i1:i2]) or ABSENT, " ".join(there[j1:j2]) or ABSENT)


def diff_values(section: str, path: str, left: Any, right: Any) -> Iterator[Difference]:
    """Compare two JSON values, down to the keys that differ."""
    if isinstance(left, dict) and isinstance(right, dict):
        for name in [*left, *(name for name in right if name not in left)]:
            below = f"{path}.{name}" if path else str(name)
            if name not in left:
                yield Difference(section, below, "key", ABSENT, PRESENT)
            elif name not in right:
                yield Difference(section, below, "key", PRESENT, ABSENT)
            else:
                yield from diff_values(section, below, left[name], right[name])
    elif isinstance(left, list) and isinstance(right, list) and len(left) == len(right):
        for index, (one, other) in enumerate(zip(left, right, strict=True)):
            yield from diff_values(section, f"{path}[{index}]", one, other)
    elif left != right or type(left) is not type(right):
        yield Difference(section, path, "value", repr(left), repr(right))
