# SPDX-License-Identifier: Apache-2.0
"""The files inside an image archive, by name: a tar file, compressed or not, or an OCI layout as a directory.

Source: OCI image specification (image-layout.md); POSIX pax, GNU tar manual (by the standard library).
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import json
import lzma
import os
import re
import stat
import tarfile
import zlib
from dataclasses import dataclass
from typing import IO, Any, cast

from enclavekit_core.errors import InputError, describe_cause

MAX_JSON_BYTES = 8 * 1024 * 1024  # an image index or configuration; real ones are under 100 KiB
MAX_MEMBERS = 100_000  # of an image archive: a few for each layer
MAX_TAR_HEADER_BYTES = 4 * 1024 * 1024  # of one entry's extended header, which tarfile reads whole
MAX_ARCHIVE_BYTES = 256 * 1024**3  # unpacked, and of a layer: above what disks of build machines hold; ends bombs
MAX_ZSTD_WINDOW_BYTES = 1 << 27  # `zstd --long`
CHUNK_BYTES = 1 << 20
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
DAMAGE = (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, ValueError, RecursionError, OverflowError)
EXTENDED_HEADERS = frozenset(b"xgXLKNV")  # tar's types that describe the next entry


@dataclass(frozen=True, slots=True)
class Place:
    """Where a member's bytes lie on disk."""

    path: str
    offset: int
    size: int


class GuardedTarInfo(tarfile.TarInfo):
    """A tar header that cannot make the library read without end: no negative and no huge sizes."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> GuardedTarInfo:
        made = super().frombuf(buf, encoding, errors)
        if made.size < 0 or (made.type[0] in EXTENDED_HEADERS and made.size > MAX_TAR_HEADER_BYTES):
            raise tarfile.ReadError(f"an entry says that it has {made.size} bytes")
        return made


class BlobReader(io.RawIOBase):
    """The bytes of a `Place`, hashed as they are read from start to end."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.digest = hashlib.sha256()
        self._file = open(place.path, "rb", buffering=0)  # noqa: SIM115 - closed by close()
        self._file.seek(place.offset)
        self._left = place.size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")[: self._left]
        count = self._file.readinto(view) or 0
        if not count and len(view):
            raise EOFError("it is cut off")
        self._left -= count
        self.digest.update(view[:count])
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


class ImageFiles:
    """The files of an image by their names, whatever holds them."""

    def __init__(self, path: str, places: dict[str, Place], links: dict[str, str]) -> None:
        self.path, self._places, self._links = path, places, links

    def __contains__(self, name: str) -> bool:
        return name in self._places or name in self._links

    def place(self, name: str) -> Place:
        """Return where the file `name` is. Raises InputError if there is none."""
        for _ in range(2):  # docker save links equal layers
            if name in self._places:
                return self._places[name]
            name = os.path.normpath(os.path.join(os.path.dirname(name), self._links.get(name, name)))
        raise InputError("read", self.path, f"it has no file {name!r}")

    def json(self, name: str, digest: str = "") -> Any:
        """Return a parsed JSON file, checked against `sha256:...` if given."""
        place = self.place(name)
        if place.size > MAX_JSON_BYTES:
            raise InputError("read", self.path, f"{name!r} is larger than {MAX_JSON_BYTES} bytes")
        with BlobReader(place) as stream:
            raw = stream.readall()
        assert raw is not None  # a file does not block
        if digest and hashlib.sha256(raw).hexdigest() != digest.removeprefix("sha256:"):
            raise InputError("read", self.path, f"{name!r} does not have the hash in its name")
        try:
            return json.loads(raw)
        except (ValueError, RecursionError) as exc:
            raise InputError("read", self.path, f"{name!r} is not JSON") from exc


def open_image(path: str, scratch: str) -> ImageFiles:
    """List the files of the image archive or layout directory at `path`. Raises InputError.

    Args: scratch: a directory for an archive that is compressed as a whole: it is unpacked there once.
    """
    try:
        if os.path.isdir(path):
            return _open_directory(path)
        return _open_tar(path, scratch)
    except OSError as exc:
        raise InputError("read", path, describe_cause(exc)) from exc
    except DAMAGE as exc:
        raise InputError("read", path, "it is not a sound tar archive") from exc


def _open_directory(path: str) -> ImageFiles:
    path = os.path.realpath(path)
    places = {}
    blobs = os.path.join("blobs", "sha256")
    folder = os.path.join(path, blobs)
    names = ["index.json", "oci-layout"]
    if os.path.isdir(folder):
        names += [os.path.join(blobs, name) for name in os.listdir(folder) if DIGEST.fullmatch(f"sha256:{name}")]
    for name in names:
        inside = os.path.join(path, name)
        status = os.lstat(inside) if os.path.lexists(inside) else None
        if status is not None and stat.S_ISREG(status.st_mode):  # a link may lead out of the layout
            places[name] = Place(inside, 0, status.st_size)
    if "index.json" not in places:
        raise InputError("read", path, "the directory has no index.json: it is no OCI layout")
    return ImageFiles(path, places, {})


def _open_tar(path: str, scratch: str) -> ImageFiles:
    plain = _unpacked(path, scratch)
    places: dict[str, Place] = {}
    links: dict[str, str] = {}
    with tarfile.open(plain, "r:", tarinfo=GuardedTarInfo, encoding="utf-8", errors="surrogateescape") as archive:
        size, last = os.stat(plain).st_size, -1
        while (member := archive.next()) is not None:
            if member.offset <= last or member.size < 0:  # a pax header may say anything
                raise tarfile.ReadError("an entry says that it has a negative size")
            if member.isfile() and member.offset_data + member.size > size:
                raise tarfile.ReadError("it is cut off")
            last = member.offset
            name = os.path.normpath(member.name)
            if member.isfile() and not member.issparse():
                places[name] = Place(plain, member.offset_data, member.size)
                links.pop(name, None)
            elif member.issym() or member.islnk():
                target = member.linkname if member.issym() else "/" + os.path.normpath(member.linkname)
                places.pop(name, None)
                links[name] = target if member.issym() else os.path.relpath(target, "/" + os.path.dirname(name))
            cast(Any, archive).members.clear()  # the library keeps all that it has seen; we need none again
            if len(places) + len(links) > MAX_MEMBERS:
                raise InputError("read", path, f"it holds more than {MAX_MEMBERS} files")
    return ImageFiles(path, places, links)


def _unpacked(path: str, scratch: str) -> str:
    """Return the real path of the archive, or of a copy without the compression that it has as a whole."""
    with open(path, "rb") as source:
        stream = uncompressed(source)
        if stream is source:
            return os.path.realpath(path)
        target = os.path.join(scratch, "archive.tar")
        with open(target, "wb") as out:
            size = 0
            while chunk := stream.read(CHUNK_BYTES):
                size += len(chunk)
                if size > MAX_ARCHIVE_BYTES:
                    raise InputError("read", path, f"it unpacks to more than {MAX_ARCHIVE_BYTES} bytes")
                out.write(chunk)
    return target


def uncompressed(source: IO[bytes]) -> IO[bytes]:
    """Return a reader of what `source`, a seekable or buffered file at its start, holds; itself if not compressed."""
    magic = source.peek(6)[:6] if isinstance(source, io.BufferedReader) else b""
    if magic.startswith(b"\x1f\x8b"):
        return cast(IO[bytes], gzip.GzipFile(fileobj=source))
    if magic.startswith(b"\x28\xb5\x2f\xfd"):
        return cast(IO[bytes], _ZstdReader(source))
    if magic.startswith(b"\xfd7zXZ\0"):
        return cast(IO[bytes], lzma.LZMAFile(source))
    if magic.startswith(b"BZh"):
        return cast(IO[bytes], bz2.BZ2File(source))
    return source


class _ZstdReader:
    """Zstandard frames one after another; damage is an EOFError, as damaged gzip's is."""

    def __init__(self, source: IO[bytes]) -> None:
        import zstandard

        self._error = zstandard.ZstdError
        decoder = zstandard.ZstdDecompressor(max_window_size=MAX_ZSTD_WINDOW_BYTES)
        self._reader = decoder.stream_reader(source, read_size=CHUNK_BYTES, read_across_frames=True)

    def read(self, size: int) -> bytes:
        try:
            return bytes(self._reader.read(size))
        except self._error as exc:
            raise EOFError(f"damaged zstd data: {exc}") from exc
