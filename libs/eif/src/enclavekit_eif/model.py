# SPDX-License-Identifier: Apache-2.0
"""The byte layout of an EIF: pure, no I/O. Everything that knows header offsets lives in this file.

    header (548 bytes) | section header (12) | data | section header | data | ...    all integers big-endian, no padding

Source: aws-nitro-enclaves-image-format, src/defs; QEMU hw/core/eif.c.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass

MAGIC = b".eif"
VERSION = 4
"""What we write: the current version, with mandatory metadata."""
OLDEST_VERSION = 2
"""Versions 0 and 1 were never published."""

ARCH_X86_64 = 0
ARCH_AARCH64 = 1
ARCH_NAMES = {ARCH_X86_64: "x86_64", ARCH_AARCH64: "aarch64"}
ARCH_FLAG = 0x1  # the only flag bit with a meaning

MAX_SECTIONS = 32  # slots in the header's table
DEFAULT_MEM_BYTES = 1 << 30  # what eif_build writes; no loader uses it
DEFAULT_CPUS = 2

# magic, version, flags, default_mem, default_cpus, reserved, num_sections, offsets[32], sizes[32], unused, crc32
HEADER = struct.Struct(">4sHHQQHH32Q32QII")
SECTION_HEADER = struct.Struct(">HHQ")  # type, flags, size of the data
CRC_OFFSET = HEADER.size - 4  # the CRC is the header's last field and the only bytes that it does not cover

MAX_CMDLINE_BYTES = 64 * 1024  # far above COMMAND_LINE_SIZE of any kernel (2048 on x86_64 and aarch64)
MAX_SIGNATURE_BYTES = 32768  # the limit of the image format
MAX_METADATA_BYTES = 1 << 20  # a full `docker inspect` is some 10 KB; it is held in memory


class SectionType(enum.IntEnum):
    INVALID = 0
    KERNEL = 1
    CMDLINE = 2
    RAMDISK = 3
    SIGNATURE = 4
    METADATA = 5


FIRST_VERSION_WITH = {SectionType.SIGNATURE: 3, SectionType.METADATA: 4}
MAX_SECTION_BYTES = {
    SectionType.CMDLINE: MAX_CMDLINE_BYTES,
    SectionType.SIGNATURE: MAX_SIGNATURE_BYTES,
    SectionType.METADATA: MAX_METADATA_BYTES,
}


@dataclass(frozen=True, slots=True)
class Section:
    """One section and where it is."""

    type: SectionType
    offset: int
    """Bytes from the start of the file to the section *header*, as in the header's table."""
    size: int
    """Bytes of data, section header not counted."""

    @property
    def data_offset(self) -> int:
        return self.offset + SECTION_HEADER.size

    @property
    def end(self) -> int:
        return self.data_offset + self.size


@dataclass(frozen=True, slots=True)
class Header:
    """The header's fields, unchecked."""

    magic: bytes
    version: int
    flags: int
    default_mem: int
    """Bytes; written by builders, read by nobody."""
    default_cpus: int
    num_sections: int
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    crc32: int


def decode_header(data: bytes) -> Header:
    """Decode HEADER.size bytes without judging them."""
    magic, version, flags, mem, cpus, _reserved, count, *rest = HEADER.unpack(data)
    return Header(
        magic, version, flags, mem, cpus, count, tuple(rest[:MAX_SECTIONS]), tuple(rest[MAX_SECTIONS:-2]), rest[-1]
    )


def encode_header(
    flags: int,
    sections: list[Section],
    crc32: int = 0,
    *,
    version: int = VERSION,
    default_mem: int = DEFAULT_MEM_BYTES,
    default_cpus: int = DEFAULT_CPUS,
) -> bytes:
    """Encode the header of an image with these sections, in file order; at most MAX_SECTIONS of them."""
    padding = [0] * (MAX_SECTIONS - len(sections))
    offsets = [section.offset for section in sections] + padding
    sizes = [section.size for section in sections] + padding
    return HEADER.pack(MAGIC, version, flags, default_mem, default_cpus, 0, len(sections), *offsets, *sizes, 0, crc32)


def plan_sections(parts: list[tuple[SectionType, int]]) -> list[Section]:
    """Lay out (type, data size) pairs back to back after the header."""
    sections, offset = [], HEADER.size
    for kind, size in parts:
        sections.append(Section(kind, offset, size))
        offset = sections[-1].end
    return sections
