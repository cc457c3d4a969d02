# SPDX-License-Identifier: Apache-2.0
"""Read Debian packages without dpkg: an ar archive with a control and a data member, each a compressed tar.

Hosts that are no Debian (Amazon Linux, say) have no dpkg-deb, and a reader of our own treats every package as hostile.
Source: deb(5), ar(5).
"""

from __future__ import annotations

import gzip
import io
import lzma
import re
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO, Protocol, cast

from enclavekit_core.errors import InputError, describe_cause

MAGIC = b"!<arch>\n"
HEADER_BYTES = 60
MAX_CONTROL_BYTES = 1024 * 1024  # a control file has a kilobyte
MAX_DATA_BYTES = 2 * 1024**3  # unpacked; the largest that we fetch, the kernel's source, has 150 MB packed
VERSION = re.compile(r"[0-9][A-Za-z0-9.+:~-]*")
NAME = re.compile(r"[a-z0-9][a-z0-9.+-]+")
MALFORMED = (tarfile.TarError, lzma.LZMAError, zlib.error, gzip.BadGzipFile, EOFError, OSError, ValueError)


class _Window(io.RawIOBase):
    """A part of a file, read only; knows where it ends."""

    def __init__(self, source: BinaryIO, size: int) -> None:
        self._source, self._left = source, size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer)  # type: ignore[arg-type]
        chunk = self._source.read(min(len(view), self._left))
        if not chunk and view and self._left:
            raise ValueError("it ends too soon")
        self._left -= len(chunk)
        view[: len(chunk)] = chunk
        return len(chunk)


class Readable(Protocol):
    """What can be read to its end."""

    def read(self, size: int, /) -> bytes: ...


class _Capped(io.RawIOBase):
    """Ends a decompression bomb."""

    def __init__(self, source: Readable, limit: int) -> None:
        self._source, self._left = source, limit

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer)  # type: ignore[arg-type]
        chunk = self._source.read(len(view))
        self._left -= len(chunk)
        if self._left < 0:
            raise ValueError("it unpacks to more than any package has")
        view[: len(chunk)] = chunk
        return len(chunk)


@contextmanager
def open_data(path: str) -> Iterator[tarfile.TarFile]:
    """Give the tar stream of a package's files; reads it once, in order. Raises InputError."""
    with _open_member(path, "data", MAX_DATA_BYTES) as archive:
        yield archive


def read_control(path: str) -> dict[str, str]:
    """Return the fields of a package's control file, continuation lines joined. Raises InputError."""
    with _open_member(path, "control", 16 * MAX_CONTROL_BYTES) as archive:
        for member in archive:
            if member.name.removeprefix("./") == "control" and member.isfile():
                if member.size > MAX_CONTROL_BYTES:
                    raise ValueError(f"its control file has {member.size} bytes")
                content = archive.extractfile(member)
                assert content is not None
                return _fields(content.read().decode("utf-8"))
        raise ValueError("it has no control file")


def identify(path: str) -> tuple[str, str, str]:
    """Return (name, version, architecture) of a package. Raises InputError."""
    fields = read_control(path)
    name, version, arch = (fields.get(key, "") for key in ("Package", "Version", "Architecture"))
    if not NAME.fullmatch(name) or not VERSION.fullmatch(version):
        raise InputError("read package", path, "its control file has no valid Package and Version")
    return name, version, arch


def _fields(text: str) -> dict[str, str]:
    fields: dict[str, str] = {}
    last = ""
    for line in text.splitlines():
        if line[:1] in (" ", "\t"):
            if not last:
                raise ValueError("its control file starts with a continuation line")
            fields[last] += "\n" + line.strip()
        elif line.strip():
            last, colon, value = line.partition(":")
            if not colon:
                raise ValueError("a line of its control file has no colon")
            fields[last] = value.strip()
    return fields


@contextmanager
def _open_member(path: str, wanted: str, limit: int) -> Iterator[tarfile.TarFile]:
    try:
        with open(path, "rb") as source:
            name, size = _seek(source, wanted)
            window = cast(BinaryIO, io.BufferedReader(_Window(source, size), 1 << 16))
            with tarfile.open(fileobj=_capped(name, window, limit), mode="r|") as archive:
                yield archive
    except InputError:
        raise
    except MALFORMED as exc:
        raise InputError("read package", path, describe_cause(exc)) from exc


def _capped(name: str, window: BinaryIO, limit: int) -> BinaryIO:
    suffix = name.partition(".tar")[2]
    opened: Readable
    if suffix == ".xz":
        opened = lzma.LZMAFile(window, format=lzma.FORMAT_XZ)  # noqa: SIM115 - as any other decompressor: closed with what it reads
    elif suffix == ".gz":
        opened = gzip.GzipFile(fileobj=window, mode="rb")
    elif suffix == ".zst":
        import zstandard

        opened = _ZstdErrors(zstandard.ZstdDecompressor(max_window_size=1 << 27).stream_reader(window))
    elif suffix == "":
        opened = window
    else:
        raise ValueError(f"its member {name} has a compression that is not known")
    return cast(BinaryIO, io.BufferedReader(_Capped(opened, limit), 1 << 16))


class _ZstdErrors:
    """Turns zstandard's own exception into a ValueError."""

    def __init__(self, source: Readable) -> None:
        self._source = source

    def read(self, size: int) -> bytes:
        import zstandard

        try:
            return self._source.read(size)
        except zstandard.ZstdError as exc:
            raise ValueError(str(exc)) from exc


def _seek(source: BinaryIO, wanted: str) -> tuple[str, int]:
    """Go to the content of the member `wanted`.tar[.*]; return its name and size. Raises ValueError."""
    if source.read(len(MAGIC)) != MAGIC:
        raise ValueError("it is no ar archive")
    first = True
    while header := source.read(HEADER_BYTES):
        if len(header) < HEADER_BYTES or header[58:] != b"`\n":
            raise ValueError("an ar header is damaged")
        digits = header[48:58].rstrip(b" ")
        if not digits.isdigit():
            raise ValueError("an ar header has no size")
        name, size = header[:16].rstrip(b" ").rstrip(b"/").decode("ascii", "replace"), int(digits)
        if first:
            if name != "debian-binary" or not source.read(size).startswith(b"2."):
                raise ValueError("it is no Debian package of format 2")
            source.seek(size % 2, io.SEEK_CUR)
        elif name == f"{wanted}.tar" or name.startswith(f"{wanted}.tar."):
            return name, size
        else:
            source.seek(size + size % 2, io.SEEK_CUR)
        first = False
    raise ValueError(f"it has no {wanted}.tar")
