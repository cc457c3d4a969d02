# SPDX-License-Identifier: Apache-2.0
"""Say where two images differ: section, archive member, field. Memory stays constant however large they are.

Whatever differs in the bytes shows in at least one difference.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator

from enclavekit_core.errors import InputError

from enclavekit_eif.diff_ramdisk import diff_ramdisks
from enclavekit_eif.difference import (
    ABSENT,
    PRESENT,
    Difference,
    diff_values,
    diff_words,
    excerpt,
    first_difference,
    render_difference,
)
from enclavekit_eif.measure import pcr_of
from enclavekit_eif.model import Section, SectionType
from enclavekit_eif.reader import Eif, read_eif

__all__ = ["Difference", "diff_eifs", "render_difference"]

CHUNK_BYTES = 1 << 20


def diff_eifs(a: str | os.PathLike[str], b: str | os.PathLike[str]) -> list[Difference]:
    """Return what differs between two images; nothing if they are the same bytes. Raises InputError."""
    with read_eif(a) as one, read_eif(b) as other:
        found = [*_diff_header(one, other), *_diff_sections(one, other)]
        if not found and one.header != other.header:
            # all that the header tells is compared by now but the CRC and fields that are reserved
            found = [Difference("header", "", "stored CRC", f"{one.crc32:08x}", f"{other.crc32:08x}")]
            if one.crc32 == other.crc32:
                offset = first_difference(one.header, other.header) or 0
                found = [Difference("header", "", f"reserved byte at {offset}")]
        return found


def _diff_header(one: Eif, other: Eif) -> Iterator[Difference]:
    for name in ("version", "flags", "default_mem", "default_cpus"):
        left, right = getattr(one, name), getattr(other, name)
        if left != right:
            yield Difference("header", "", name, str(left), str(right))


def _diff_sections(one: Eif, other: Eif) -> Iterator[Difference]:
    here, there = _named(one), _named(other)
    common = [name for name in here if name in there]
    for name in here:
        if name not in there:
            yield Difference(name, "", "section", PRESENT, ABSENT)
    for name in there:
        if name not in here:
            yield Difference(name, "", "section", ABSENT, PRESENT)
    if common != [name for name in there if name in here]:
        yield Difference("header", "", "order of sections", ", ".join(here), ", ".join(there))
    for name in common:
        offset = _first_stored_difference(one, here[name], other, there[name])
        if offset is not None:
            yield from _diff_section(name, one, here[name], other, there[name], offset)


def _diff_section(name: str, one: Eif, left: Section, other: Eif, right: Section, offset: int) -> Iterator[Difference]:
    raw = Difference(
        name, "", f"content at {offset}", _excerpt_of(one, left, offset), _excerpt_of(other, right, offset)
    )
    found: list[Difference] = []
    if left.type is SectionType.RAMDISK:
        openers = functools.partial(one.open_section, left), functools.partial(other.open_section, right)
        try:
            found = list(diff_ramdisks(name, *openers))
        except InputError as exc:  # no archive that can be read: the bytes still tell where
            found = [Difference(name, "", f"cannot be compared as an archive, {exc.reason}"), raw]
    elif left.type is SectionType.CMDLINE:
        found = list(diff_words(name, *(eif.cmdline().decode(errors="backslashreplace") for eif in (one, other))))
    elif left.type is SectionType.METADATA:
        found = list(diff_values(name, "", one.metadata, other.metadata))
    elif left.type is SectionType.SIGNATURE:
        found = list(_diff_signature(name, one, other))
    yield from found or [raw]


def _diff_signature(name: str, one: Eif, other: Eif) -> Iterator[Difference]:
    from enclavekit_eif.signature import read_signature

    try:
        left, right = read_signature(one), read_signature(other)
    except InputError:
        return  # the bytes tell where
    ders = left.certificate_der(), right.certificate_der()
    if ders[0] != ders[1]:
        names = (signature.certificate().subject.rfc4514_string() for signature in (left, right))
        yield Difference(name, "", "certificate", *names)
        yield Difference(name, "", "PCR8", *(pcr_of([der]).hex() for der in ders))
    elif left.certificate_pem != right.certificate_pem:
        offset = first_difference(left.certificate_pem, right.certificate_pem) or 0
        shown = (excerpt(signature.certificate_pem, offset) for signature in (left, right))
        yield Difference(name, "", f"text of the certificate's PEM at {offset}", *shown)
    if left.cose != right.cose:
        offset = first_difference(left.cose, right.cose) or 0
        yield Difference(
            name, "", f"COSE_Sign1 at {offset}", *(excerpt(signature.cose, offset) for signature in (left, right))
        )


def _named(eif: Eif) -> dict[str, Section]:
    """Return name -> section in file order; ramdisks are counted: 0 is the framework, 1 the app."""
    found: dict[str, Section] = {}
    ramdisks = 0
    for section in eif.sections:
        name = section.type.name.lower()
        if section.type is SectionType.RAMDISK:
            name, ramdisks = f"ramdisk {ramdisks}", ramdisks + 1
        found[name] = section
    return found


def _first_stored_difference(one: Eif, left: Section, other: Eif, right: Section) -> int | None:
    position = 0
    with one.open_section(left) as here, other.open_section(right) as there:
        while True:
            ours, theirs = here.read(CHUNK_BYTES), there.read(CHUNK_BYTES)
            offset = first_difference(ours, theirs)
            if offset is not None:
                return position + offset
            if not ours:
                return None
            position += len(ours)


def _excerpt_of(eif: Eif, section: Section, offset: int) -> str:
    start = max(0, offset - 8)
    data = os.pread(eif.fd, min(64, section.size - start), section.data_offset + start)
    return excerpt(data, offset - start)
