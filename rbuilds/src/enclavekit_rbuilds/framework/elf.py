# SPDX-License-Identifier: Apache-2.0
"""Cut symbols and debug information off ELF shared objects: pure, and the same on every machine.

Wheels carry them by the tens of megabytes (uvloop 13.6 MB, of which 1.6 MB are ever loaded), and in an enclave every
file is memory. The loader reads program headers only, so everything behind the last segment goes, section table
included. Not done with `strip`: its output depends on the version of binutils, and a framework must not.

Source: elf(5), System V ABI; the same cut as `sstrip`.
"""

from __future__ import annotations

import struct

HEADER = struct.Struct("<16sHHIQQQIHHHHHH")  # Elf64_Ehdr, little endian
SEGMENT = struct.Struct("<IIQQQQQQ")  # Elf64_Phdr
IDENT = b"\x7fELF\x02\x01"  # 64 bits, little endian: both of our architectures
ET_DYN = 3
MAX_SEGMENTS = 256  # a shared object has about ten


def strip_shared_object(raw: bytes) -> bytes:
    """Return `raw` without what is never loaded; unchanged if it is no 64-bit little-endian shared object."""
    if len(raw) < HEADER.size or not raw.startswith(IDENT):
        return raw
    (ident, kind, machine, version, entry, phoff, _, flags, ehsize, phentsize, phnum, shentsize, _, _) = (
        HEADER.unpack_from(raw)
    )
    table_end = phoff + phnum * SEGMENT.size
    if kind != ET_DYN or phentsize != SEGMENT.size or not 0 < phnum <= MAX_SEGMENTS or table_end > len(raw):
        return raw
    end = max(HEADER.size, table_end)
    for index in range(phnum):
        _, _, offset, _, _, size_in_file, _, _ = SEGMENT.unpack_from(raw, phoff + index * SEGMENT.size)
        end = max(end, offset + size_in_file)
    if end > len(raw):
        return raw
    header = HEADER.pack(
        ident, kind, machine, version, entry, phoff, 0, flags, ehsize, phentsize, phnum, shentsize, 0, 0
    )
    return header + raw[HEADER.size : end]
