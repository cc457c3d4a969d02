# SPDX-License-Identifier: Apache-2.0
"""Open an EIF and check its structure; bodies are streamed, never loaded.

Two readers decide what is a good EIF: the reference library walks the section headers and ignores the table, QEMU seeks
by the table. A file that the two see differently is refused here, so that what we measure is what either would boot.
The CRC is left to `measure`, which has to read every byte anyway.

Source: aws-nitro-enclaves-image-format, src/utils/eif_reader.rs; QEMU hw/core/eif.c.
"""

from __future__ import annotations

import io
import json
import os
import stat
import weakref
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from enclavekit_core.errors import InputError, describe_cause

from enclavekit_eif.metadata import encode_metadata
from enclavekit_eif.model import (
    ARCH_FLAG,
    ARCH_NAMES,
    FIRST_VERSION_WITH,
    HEADER,
    MAGIC,
    MAX_SECTION_BYTES,
    MAX_SECTIONS,
    OLDEST_VERSION,
    SECTION_HEADER,
    VERSION,
    Header,
    Section,
    SectionType,
    decode_header,
)

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

READ_BUFFER_BYTES = 1 << 18  # in the caches of one core, and few enough calls


@dataclass(frozen=True, eq=False)
class Eif:
    """An image whose structure has been checked.

    Holds the file open, so that the file that was checked is the file that is read. Use as a context manager, or leave
    closing to the garbage collector.
    """

    path: str
    version: int
    flags: int
    arch: int
    """ARCH_X86_64 or ARCH_AARCH64."""
    default_mem: int
    """Bytes; no loader uses it."""
    default_cpus: int
    sections: tuple[Section, ...]
    """In file order."""
    crc32: int
    """As stored; `measure` tells whether it is right."""
    metadata: dict[str, Any] | None
    """Parsed JSON, None before version 4. Neither measured nor signed: do not base decisions on it."""
    header: bytes = field(repr=False)
    fd: int = field(repr=False)
    """Owned by this object; read with pread only."""
    _closer: weakref.finalize[Any, Any] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_closer", weakref.finalize(self, os.close, self.fd))

    @property
    def kernel(self) -> Section:
        return next(section for section in self.sections if section.type is SectionType.KERNEL)

    @property
    def ramdisks(self) -> list[Section]:
        """In file order: the first is the framework (PCR1), the others are the app (PCR2)."""
        return [section for section in self.sections if section.type is SectionType.RAMDISK]

    @property
    def signature(self) -> Section | None:
        return next((section for section in self.sections if section.type is SectionType.SIGNATURE), None)

    def cmdline(self) -> bytes:
        """Return the kernel command line, byte for byte."""
        return self.read_section(next(section for section in self.sections if section.type is SectionType.CMDLINE))

    def open_section(self, section: Section) -> io.BufferedReader:
        """Return a reader of the section's data and nothing else. Readers are independent of each other."""
        return io.BufferedReader(SectionReader(self, section), READ_BUFFER_BYTES)

    def open_ramdisks(self) -> io.BufferedReader:
        """Return a reader of all ramdisks end to end: the initramfs as the kernel gets it."""
        return io.BufferedReader(SectionReader(self, *self.ramdisks), READ_BUFFER_BYTES)

    def read_section(self, section: Section) -> bytes:
        """Return the data of a section whose type has a size limit (cmdline, metadata, signature)."""
        assert section.size <= MAX_SECTION_BYTES[section.type]
        return _read_exactly(self.fd, section.size, section.data_offset, self.path)

    def close(self) -> None:
        self._closer()

    def __enter__(self) -> Eif:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


class SectionReader(io.RawIOBase):
    """The bytes of sections end to end as a file. Keeps its Eif alive."""

    def __init__(self, eif: Eif, *sections: Section) -> None:
        self._eif = eif
        self._sections = list(reversed(sections))
        self._position = self._end = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        while self._position == self._end:
            if not self._sections:
                return 0
            section = self._sections.pop()
            self._position, self._end = section.data_offset, section.end
        view = memoryview(buffer).cast("B")[: self._end - self._position]
        count = os.preadv(self._eif.fd, [view], self._position)
        if count == 0:
            raise InputError("read EIF", self._eif.path, "it was truncated while being read")
        self._position += count
        return count


def read_eif(path: str | os.PathLike[str]) -> Eif:
    """Open `path`, check everything but the CRC and return it.

    Raises: InputError (`cannot read EIF PATH: cause`) for whatever is not a well-formed EIF, missing files included.
    """
    name = os.fspath(path)
    try:
        fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a FIFO must not hang us
    except (OSError, ValueError) as exc:
        raise _refusal(name, describe_cause(exc)) from exc
    try:
        return _read(fd, name)
    except OSError as exc:
        os.close(fd)
        raise _refusal(name, describe_cause(exc)) from exc
    except BaseException:
        os.close(fd)
        raise


def _read(fd: int, name: str) -> Eif:
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        raise _refusal(name, "not a regular file")
    if status.st_size < HEADER.size:
        raise _refusal(name, f"{status.st_size} bytes are less than the header's {HEADER.size}")
    raw_header = _read_exactly(fd, HEADER.size, 0, name)
    header = decode_header(raw_header)
    _check_header(header, name)
    sections = tuple(_read_section_headers(fd, header, status.st_size, name))
    _check_sections(header.version, sections, name)
    metadata = None
    for section in sections:
        if section.type is SectionType.METADATA:
            metadata = _parse_metadata(_read_exactly(fd, section.size, section.data_offset, name), name)
    return Eif(
        path=name,
        version=header.version,
        flags=header.flags,
        arch=header.flags & ARCH_FLAG,
        default_mem=header.default_mem,
        default_cpus=header.default_cpus,
        sections=sections,
        crc32=header.crc32,
        metadata=metadata,
        header=raw_header,
        fd=fd,
    )


def _check_header(header: Header, name: str) -> None:
    if header.magic != MAGIC:
        raise _refusal(name, f"not an EIF, it starts with {header.magic!r}")
    if not OLDEST_VERSION <= header.version <= VERSION:
        raise _refusal(name, f"version {header.version} is not {OLDEST_VERSION} to {VERSION}")
    if header.flags & ~ARCH_FLAG:
        raise _refusal(name, f"unknown flags {header.flags:#06x}")
    if not 2 <= header.num_sections <= MAX_SECTIONS:
        raise _refusal(name, f"{header.num_sections} sections are not 2 to {MAX_SECTIONS}")
    if any(header.offsets[header.num_sections :]) or any(header.sizes[header.num_sections :]):
        raise _refusal(name, f"the section table goes on after its {header.num_sections} sections")


def _read_section_headers(fd: int, header: Header, file_size: int, name: str) -> list[Section]:
    """Walk table and section headers together; any disagreement between them is an error."""
    sections: list[Section] = []
    position = HEADER.size
    for index in range(header.num_sections):
        if header.offsets[index] != position:
            raise _refusal(
                name, f"section {index} is at {header.offsets[index]} in the table, at {position} in the file"
            )
        if position + SECTION_HEADER.size > file_size:
            raise _refusal(name, f"truncated before section {index}")
        kind, flags, size = SECTION_HEADER.unpack(_read_exactly(fd, SECTION_HEADER.size, position, name))
        if kind == SectionType.INVALID or kind > max(SectionType):
            raise _refusal(name, f"section {index} has the unknown type {kind}")
        if flags:
            raise _refusal(name, f"section {index} has unknown flags {flags:#06x}")
        if size != header.sizes[index]:
            raise _refusal(name, f"section {index} has {header.sizes[index]} bytes in the table, {size} in its header")
        section = Section(SectionType(kind), position, size)
        if section.end > file_size:
            raise _refusal(name, f"truncated in section {index} ({section.type.name.lower()})")
        sections.append(section)
        position = section.end
    if position != file_size:
        raise _refusal(name, f"{file_size - position} bytes after the last section")
    return sections


def _check_sections(version: int, sections: tuple[Section, ...], name: str) -> None:
    kinds = [section.type for section in sections]
    for kind in (SectionType.KERNEL, SectionType.CMDLINE):
        if kinds.count(kind) != 1:
            raise _refusal(name, f"{kinds.count(kind)} {kind.name.lower()} sections, there must be one")
    for kind, first_version in FIRST_VERSION_WITH.items():
        if kinds.count(kind) > 1:
            raise _refusal(name, f"{kinds.count(kind)} {kind.name.lower()} sections")
        if kind in kinds and version < first_version:
            raise _refusal(name, f"a {kind.name.lower()} section in version {version}")
    if SectionType.RAMDISK not in kinds:
        raise _refusal(name, "no ramdisk section")
    if kinds.index(SectionType.RAMDISK) < kinds.index(SectionType.KERNEL):
        raise _refusal(name, "a ramdisk section before the kernel section")
    if SectionType.METADATA not in kinds and version >= FIRST_VERSION_WITH[SectionType.METADATA]:
        raise _refusal(name, f"no metadata section, which version {version} must have")
    for section in sections:
        limit = MAX_SECTION_BYTES.get(section.type)
        if limit is not None and section.size > limit:
            raise _refusal(name, f"{section.size} bytes of {section.type.name.lower()} are more than {limit}")
        if section.size == 0 and section.type is SectionType.KERNEL:
            raise _refusal(name, "the kernel section is empty")


def _parse_metadata(data: bytes, name: str) -> dict[str, Any]:
    try:
        metadata = json.loads(data.decode())
        encode_metadata(metadata)  # also refuses what Python reads and JSON does not have
    except (ValueError, RecursionError) as exc:
        raise _refusal(name, f"metadata: {exc}") from exc
    assert isinstance(metadata, dict)
    return metadata


def _read_exactly(fd: int, size: int, offset: int, name: str) -> bytes:
    data = os.pread(fd, size, offset)
    if len(data) != size:
        raise _refusal(name, "it was truncated while being read")
    return data


def _refusal(name: str, reason: str) -> InputError:
    return InputError("read EIF", name, reason)


def arch_name(eif: Eif) -> str:
    """Return `x86_64` or `aarch64`."""
    return ARCH_NAMES[eif.arch]
