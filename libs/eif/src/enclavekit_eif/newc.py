# SPDX-License-Identifier: Apache-2.0
"""The newc cpio format: read entries from a stream, as the kernel's initramfs does, trusting nothing in it.

    "070701", 13 fields of 8 hex digits, name with NUL, zeros to a multiple of 4, data, zeros to a multiple of 4
    ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check

Source: Linux Documentation/driver-api/early-userspace/buffer-format.rst, init/initramfs.c.
"""

from __future__ import annotations

import binascii
import io
import os
import struct
from collections.abc import Iterator
from typing import IO

from enclavekit_eif.compression import buffered, open_member, refusal, skip_zeros

MAGIC = b"070701"
CRC_MAGIC = b"070702"
TRAILER = b"TRAILER!!!"
HEADER_BYTES = 110
FIELDS = struct.Struct(">13I")
MAX_NAME_BYTES = 4096  # PATH_MAX, NUL included; the kernel skips longer names
MAX_LINK_BYTES = 4095  # PATH_MAX less NUL
MAX_FILE_BYTES = 0xFFFFFFFF  # the field's width
CHUNK_BYTES = 1 << 20


def padding(size: int) -> int:
    """Return the zeros that follow `size` bytes."""
    return -size & 3


class EntryData:
    """The data of one entry, to be read before the next entry is asked for; what is not read is skipped."""

    __slots__ = ("_left", "_source")

    def __init__(self, source: io.BufferedReader, size: int) -> None:
        self._source = source
        self._left = size

    def read(self, size: int = -1) -> bytes:
        """Return up to `size` bytes, all that is left if negative; empty at the end."""
        wanted = self._left if size < 0 else min(size, self._left)
        data = self._source.read(wanted)
        if len(data) != wanted:
            raise refusal("archive is truncated")
        self._left -= wanted
        return data

    def skip(self) -> None:
        """Skip what is left."""
        while self._left:
            self.read(CHUNK_BYTES)


class CpioEntry:
    """One entry; `name` and link targets are whatever the archive says, `..` and absolute names included."""

    __slots__ = ("archive", "data", "dev", "gid", "ino", "mode", "mtime", "name", "nlink", "rdev", "size", "uid")

    def __init__(self, name: bytes, fields: tuple[int, ...], source: io.BufferedReader, archive: int = 0) -> None:
        self.name = name
        self.archive = archive  # counts the archives of the stream: inode numbers mean something within one only
        self.ino, self.mode, self.uid, self.gid, self.nlink, self.mtime, self.size = fields[:7]
        self.dev = fields[7], fields[8]
        self.rdev = fields[9], fields[10]
        self.data = EntryData(source, self.size)

    def __repr__(self) -> str:
        return f"CpioEntry({self.name!r}, mode={self.mode:o}, size={self.size})"

    @property
    def device(self) -> int:
        """The device number of a device node, as mknod takes it."""
        return os.makedev(*self.rdev)


def iter_cpio(stream: IO[bytes]) -> Iterator[CpioEntry]:
    """Yield the entries of all archives in `stream`, in order, without their trailers.

    Archives may follow each other, compressed or not, with zeros between them; inside a compressed member there is no
    further compression. Only one entry is in memory at a time, and only the part of its data that is asked for.

    Raises: InputError for anything malformed; an archive without its trailer counts as truncated.
    """
    source = buffered(stream)
    archive = 0
    while magic := skip_zeros(source):
        member = open_member(source, magic)
        if member is None:
            yield from _iter_archive(source, archive)
            archive += 1
            continue
        while skip_zeros(member):
            yield from _iter_archive(member, archive)
            archive += 1


def _iter_archive(source: io.BufferedReader, archive: int) -> Iterator[CpioEntry]:
    read, unhexlify, unpack = source.read, binascii.unhexlify, FIELDS.unpack
    while True:
        header = read(HEADER_BYTES)
        if header[:6] != MAGIC:
            raise refusal(_describe_bad_magic(header))
        if len(header) != HEADER_BYTES:
            raise refusal("archive is truncated")
        try:
            fields = unpack(unhexlify(header[6:]))
        except binascii.Error as exc:
            raise refusal("damaged cpio header: a field is not hexadecimal") from exc
        name_bytes = fields[11]
        if not 2 <= name_bytes <= MAX_NAME_BYTES:
            raise refusal(f"damaged cpio header: a name of {name_bytes} bytes")
        padded = name_bytes + (-(HEADER_BYTES + name_bytes) & 3)
        name = read(padded)
        if len(name) != padded:
            raise refusal("archive is truncated")
        name = name[:name_bytes]
        if name.find(b"\0") != name_bytes - 1:
            raise refusal("damaged cpio header: the name does not end with its first NUL")
        name = name[:-1]
        if name == TRAILER:
            if fields[6]:
                raise refusal("damaged cpio header: a trailer with data")
            return
        entry = CpioEntry(name, fields, source, archive)
        yield entry
        data = entry.data
        if data._left:
            data.skip()
        if (pad := -fields[6] & 3) and len(read(pad)) != pad:
            raise refusal("archive is truncated")


def _describe_bad_magic(header: bytes) -> str:
    if not header:
        return "archive is truncated: no trailer"
    if header.startswith(CRC_MAGIC):
        return "a cpio archive with checksums; only newc (070701) can be read"
    return f"not a newc cpio archive: {header[:6]!r} where an entry should be"


def describe_name(name: bytes) -> str:
    """Return a name of an archive for a message: printable, whatever is in it."""
    return repr(name.decode("utf-8", "surrogateescape"))[1:-1]
