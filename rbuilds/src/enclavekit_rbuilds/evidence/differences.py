# SPDX-License-Identifier: Apache-2.0
"""Where two images differ: section, archive member, field. Files are streamed; a file is told by its hash.

What a build can get wrong shows in the archive's members; a ramdisk whose members are all equal differs in how it was
packed or compressed, and that is told as well.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from enclavekit_eif.cpio import iter_cpio
from enclavekit_eif.model import Section, SectionType
from enclavekit_eif.reader import Eif, read_eif

CHUNK_BYTES = 1 << 20
MAX_MEMBER_DIFFERENCES = 1000  # per ramdisk: who needs more of them looks at another problem first
FIELDS = ("mode", "uid", "gid", "nlink", "ino", "mtime", "rdev", "size", "content", "position")
ABSENT = "absent"


@dataclass(frozen=True, slots=True)
class Difference:
    """One difference."""

    section: str
    member: str = ""
    """Path in the ramdisk, or name in the metadata."""
    field: str = ""
    left: str = ""
    right: str = ""


def diff_eifs(left: str, right: str) -> list[Difference]:
    """Return what differs between two image files. Raises InputError."""
    with read_eif(left) as one, read_eif(right) as other:
        return [*_diff_header(one, other), *_diff_sections(one, other)]


def render_difference(difference: Difference) -> str:
    """Return it as one line."""
    place = f"{difference.section}: {difference.member}" if difference.member else difference.section
    values = f": {difference.left} / {difference.right}" if difference.left or difference.right else ""
    return f"{place}: {difference.field}{values}"


def _diff_header(one: Eif, other: Eif) -> Iterator[Difference]:
    for name in ("version", "flags", "default_mem", "default_cpus"):
        here, there = getattr(one, name), getattr(other, name)
        if here != there:
            yield Difference("header", "", name, str(here), str(there))


def _diff_sections(one: Eif, other: Eif) -> Iterator[Difference]:
    here, there = _named_sections(one), _named_sections(other)
    for name in [*here, *(name for name in there if name not in here)]:
        if name not in here or name not in there:
            sides = ("present", ABSENT) if name in here else (ABSENT, "present")
            yield Difference(name, "", "section", *sides)
            continue
        stored = _digest(one, here[name]), _digest(other, there[name])
        if stored[0] == stored[1]:
            continue
        kind = here[name].type
        inner: list[Difference] = []
        if kind is SectionType.METADATA:
            inner = list(_diff_values(name, "", one.metadata, other.metadata))
        elif kind is SectionType.CMDLINE:
            inner = [Difference(name, "", "text", repr(one.cmdline()), repr(other.cmdline()))]
        elif kind is SectionType.RAMDISK:
            inner = list(_diff_members(name, _members(one, here[name]), _members(other, there[name])))
        yield from inner or [Difference(name, "", "stored bytes", stored[0][:16], stored[1][:16])]


def _named_sections(eif: Eif) -> dict[str, Section]:
    """Return name -> section; ramdisks are counted: 0 is the framework, 1 the app."""
    found: dict[str, Section] = {}
    ramdisks = 0
    for section in eif.sections:
        name = section.type.name.lower()
        if section.type is SectionType.RAMDISK:
            name, ramdisks = f"ramdisk {ramdisks}", ramdisks + 1
        found[name] = section
    return found


def _digest(eif: Eif, section: Section) -> str:
    digest = hashlib.sha256()
    with eif.open_section(section) as source:
        while chunk := source.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _diff_values(section: str, path: str, here: Any, there: Any) -> Iterator[Difference]:
    if isinstance(here, dict) and isinstance(there, dict):
        for name in sorted(here.keys() | there.keys()):
            below = f"{path}.{name}" if path else name
            yield from _diff_values(section, below, here.get(name, ABSENT), there.get(name, ABSENT))
    elif here != there:
        yield Difference(section, path, "value", str(here), str(there))


def _members(eif: Eif, section: Section) -> dict[str, tuple[str, ...]]:
    """Return member -> its fields in the order of FIELDS; the second of one name gets a number."""
    found: dict[str, tuple[str, ...]] = {}
    with eif.open_section(section) as source:
        for position, entry in enumerate(iter_cpio(source)):
            digest = hashlib.sha256()
            while chunk := entry.data.read(CHUNK_BYTES):
                digest.update(chunk)
            numbers = (entry.uid, entry.gid, entry.nlink, entry.ino, entry.mtime, entry.rdev, entry.size)
            name = entry.name.decode(errors="backslashreplace")
            while name in found:
                name += " (again)"
            found[name] = (f"{entry.mode:o}", *map(str, numbers), digest.hexdigest()[:16], str(position))
    return found


def _diff_members(
    section: str, here: dict[str, tuple[str, ...]], there: dict[str, tuple[str, ...]]
) -> Iterator[Difference]:
    count = 0
    same_names = here.keys() == there.keys()
    for name in sorted(here.keys() | there.keys()):
        if name not in here or name not in there:
            sides = ("present", ABSENT) if name in here else (ABSENT, "present")
            differences = [Difference(section, name, "member", *sides)]
        else:
            differences = [
                Difference(section, name, field, left, right)
                for field, left, right in zip(FIELDS, here[name], there[name], strict=True)
                # one member more moves all that follow, and numbers them anew: that tells nothing
                if left != right and (same_names or field not in ("position", "ino"))
            ]
        for difference in differences:
            count += 1
            if count > MAX_MEMBER_DIFFERENCES:
                yield Difference(section, "", f"more than {MAX_MEMBER_DIFFERENCES} differences; the rest is left out")
                return
            yield difference
