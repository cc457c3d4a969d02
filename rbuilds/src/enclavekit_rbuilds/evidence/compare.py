# SPDX-License-Identifier: Apache-2.0
"""Compare two images byte by byte, and say where they differ: section, archive member, field."""

from __future__ import annotations

from dataclasses import dataclass, field

from enclavekit_core.errors import InputError, describe_cause
from enclavekit_eif.diff import diff_eifs, render_difference

CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Found:
    """One difference between two images, as the comparison of EIFs tells it."""

    section: str
    member: str
    field: str
    left: str
    right: str
    text: str
    """The whole in a sentence."""


@dataclass(frozen=True, slots=True)
class Comparison:
    equal: bool
    """Every byte is the same."""
    differences: list[Found] = field(default_factory=list)


def compare_images(left: str, right: str) -> Comparison:
    """Return whether two image files are the same bytes, and what differs. Raises InputError."""
    offset = first_difference(left, right)
    if offset is None:
        return Comparison(True)
    found = [
        Found(
            section=item.section,
            member=item.member,
            field=item.field,
            left=item.left,
            right=item.right,
            text=render_difference(item),
        )
        for item in diff_eifs(left, right)
    ]
    # nothing may make a difference vanish that the bytes show
    raw = Found("file", "", "byte", "", "", f"first difference in byte {offset}")
    return Comparison(False, found or [raw])


def first_difference(left: str, right: str) -> int | None:
    """Return the offset of the first byte that differs, None if there is none. Raises InputError."""
    path, position = left, 0
    try:
        with open(left, "rb") as one:
            path = right
            with open(right, "rb") as other:
                while True:
                    here, there = one.read(CHUNK_BYTES), other.read(CHUNK_BYTES)
                    if here != there:
                        return position + _common(here, there)
                    if not here:
                        return None
                    position += len(here)
    except OSError as exc:
        raise InputError("read", path, describe_cause(exc)) from exc


def _common(here: bytes, there: bytes) -> int:
    pairs = enumerate(zip(here, there, strict=False))
    return next((index for index, (one, other) in pairs if one != other), min(len(here), len(there)))
