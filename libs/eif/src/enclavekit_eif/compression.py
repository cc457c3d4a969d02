# SPDX-License-Identifier: Apache-2.0
"""Read ramdisks through their compression, as the kernel does: members one after another, zeros between them.

A decoder consumes exactly its member and leaves what follows to the next one. No call returns more than was asked for,
however well a hostile member compresses.

Source: Linux init/initramfs.c and lib/decompress.c; RFC 1952 (gzip), RFC 8878 (zstd).
"""

from __future__ import annotations

import io
import zlib
from typing import IO, TYPE_CHECKING, Any

from enclavekit_core.errors import InputError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

GZIP_MAGIC = b"\x1f\x8b"
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
ZSTD_SKIPPABLE = bytes.fromhex("2a4d18")  # bytes 1..3 of a skippable frame; byte 0 is 0x50..0x5f
UNSUPPORTED = {b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x02!L\x18": "lz4", b'\x04"M\x18': "lz4", b"\x89LZO": "lzo"}
BUFFER_BYTES = 1 << 18
MAX_MAGIC_BYTES = 6
MAX_ZSTD_WINDOW_BYTES = 1 << 27  # what the kernel's own decoder allows; bounds memory per member


def refusal(reason: str) -> InputError:
    return InputError("read", "ramdisk", reason)


def buffered(stream: IO[bytes]) -> io.BufferedReader:
    """Return `stream` with `peek`, which all readers here need."""
    if isinstance(stream, io.BufferedReader):
        return stream
    return io.BufferedReader(stream, BUFFER_BYTES)  # type: ignore[arg-type]  # every binary file has readinto


def skip_zeros(source: io.BufferedReader) -> bytes:
    """Skip the padding between members; return the next bytes without consuming them, empty only at the end.

    There may be as little as one byte of a magic, as `peek` shows what is in the buffer; the member's reader checks it.
    """
    while ahead := source.peek(MAX_MAGIC_BYTES):
        zeros = len(ahead) - len(ahead.lstrip(b"\0"))
        if not zeros:
            return ahead[:MAX_MAGIC_BYTES]
        source.read(zeros)
    return b""


def open_member(source: io.BufferedReader, magic: bytes) -> io.BufferedReader | None:
    """Return a reader of the compressed member that `source` is at; None if `magic` is not that of a compression.

    Raises: InputError for a compression that we cannot read.
    """
    if magic.startswith(GZIP_MAGIC[: len(magic)]):
        return io.BufferedReader(GzipMember(source), BUFFER_BYTES)
    skippable = 0x50 <= magic[0] <= 0x5F and magic[1:4] == ZSTD_SKIPPABLE[: len(magic) - 1]
    if skippable or magic.startswith(ZSTD_MAGIC[: len(magic)]):
        return io.BufferedReader(ZstdMember(source), BUFFER_BYTES)
    for start, name in UNSUPPORTED.items():
        if magic.startswith(start):
            raise refusal(f"compressed with {name}; only gzip and zstd can be read")
    return None


def open_ramdisk(stream: IO[bytes]) -> io.BufferedReader:
    """Return a reader of the ramdisk's uncompressed bytes; `stream` is a ramdisk section or file as stored.

    An uncompressed archive passes as it is, and so does what follows it.
    """
    source = buffered(stream)
    magic = skip_zeros(source)
    if not magic or (first := open_member(source, magic)) is None:
        return source
    return io.BufferedReader(_Members(source, first), BUFFER_BYTES)


class _Members(io.RawIOBase):
    """Compressed members end to end; zeros between them are dropped."""

    def __init__(self, source: io.BufferedReader, first: io.BufferedReader) -> None:
        self._source = source
        self._current = first

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        while True:
            if count := self._current.readinto1(buffer):
                return count
            if self._current is self._source or not (magic := skip_zeros(self._source)):
                return 0
            self._current = open_member(self._source, magic) or self._source


class GzipMember(io.RawIOBase):
    """One gzip member at the front of `source`."""

    def __init__(self, source: io.BufferedReader) -> None:
        self._source = source
        self._decoder = zlib.decompressobj(wbits=31)
        self._input = b""
        self._held = 0  # bytes peeked at and not yet consumed

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer).cast("B")
        while view and not self._decoder.eof:
            if not self._input:
                self._input = self._source.peek(1)
                self._held = len(self._input)
            at_end = not self._input
            try:
                data = self._decoder.decompress(self._input, len(view))
            except zlib.error as exc:
                raise refusal(f"damaged gzip data: {exc}") from exc
            # at the member's end CPython leaves what follows it in unconsumed_tail as well: that is not ours to decode
            self._input = b"" if self._decoder.eof else self._decoder.unconsumed_tail
            if not self._input:
                self._source.read(self._held - len(self._decoder.unused_data))
                self._held = 0
            if data:
                view[: len(data)] = data
                return len(data)
            if at_end and not self._decoder.eof:
                raise refusal("gzip data is truncated")
        return 0


class ZstdMember(io.RawIOBase):
    """One zstd frame (or skippable frame, which is empty) at the front of `source`."""

    def __init__(self, source: io.BufferedReader) -> None:
        import zstandard  # here, not at the top: uncompressed and gzip ramdisks do not need it

        self._error = zstandard.ZstdError
        self._frame = _ZstdFrame(source)
        decoder = zstandard.ZstdDecompressor(max_window_size=MAX_ZSTD_WINDOW_BYTES)
        self._reader: Any = decoder.stream_reader(self._frame, read_size=BUFFER_BYTES)  # type: ignore[arg-type]

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        try:
            count = int(self._reader.readinto(buffer))
        except self._error as exc:
            raise refusal(f"damaged zstd data: {exc}") from exc
        if count == 0:
            self._frame.drain()
        return count


class _ZstdFrame:
    """The compressed bytes of exactly one frame, found by walking its block headers.

    The decoder of `zstandard` reads ahead and cannot give back; this keeps it from reading the next member.
    Layout: RFC 8878, 3.1.1 (frame header, blocks with a 3-byte little-endian header, optional checksum) and 3.1.2.
    """

    def __init__(self, source: io.BufferedReader) -> None:
        self._source = source
        self._left = 0  # bytes until the next thing to parse
        self._last = False
        self._checksum = 0
        self._pending = self._read_header()

    def read(self, size: int) -> bytes:
        """Return up to `size` bytes (at least one unless the frame has ended)."""
        parts = [self._pending]
        room = max(0, size - len(self._pending))
        self._pending = b""
        while room > 0 and (self._left or self._next_block(parts)):
            data = self._exactly(min(self._left, room)) if self._left else b""
            self._left -= len(data)
            room -= len(data)
            parts.append(data)
        return b"".join(parts)

    def drain(self) -> None:
        """Skip what the decoder did not ask for."""
        while self.read(BUFFER_BYTES):
            pass

    def _read_header(self) -> bytes:
        magic = self._exactly(4)
        if magic[1:4] == ZSTD_SKIPPABLE:
            size = self._exactly(4)
            self._left, self._last = int.from_bytes(size, "little"), True
            return magic + size
        if magic != ZSTD_MAGIC:
            raise refusal("damaged zstd data: not a frame")
        descriptor = self._exactly(1)
        single_segment = descriptor[0] >> 5 & 1
        window = 0 if single_segment else 1
        dictionary = (0, 1, 2, 4)[descriptor[0] & 3]
        content_size = (single_segment, 2, 4, 8)[descriptor[0] >> 6]
        self._checksum = 4 if descriptor[0] & 4 else 0
        return magic + descriptor + self._exactly(window + dictionary + content_size)

    def _next_block(self, parts: list[bytes]) -> bool:
        """Start the next block (or the checksum) and append its header; return whether there is one."""
        if self._last:
            self._left, self._checksum = self._checksum, 0
            return self._left > 0
        header = self._exactly(3)
        fields = int.from_bytes(header, "little")
        kind, size = fields >> 1 & 3, fields >> 3
        if kind == 3:
            raise refusal("damaged zstd data: reserved block type")
        self._last = bool(fields & 1)
        self._left = 1 if kind == 1 else size
        parts.append(header)
        return True

    def _exactly(self, size: int) -> bytes:
        data = self._source.read(size)
        if len(data) != size:
            raise refusal("zstd data is truncated")
        return data


def compression_of(start: bytes) -> str:
    """Return the name of the compression that a ramdisk begins with; empty for none."""
    magics = {GZIP_MAGIC: "gzip", ZSTD_MAGIC: "zstd", **UNSUPPORTED}
    return next((name for magic, name in magics.items() if start.startswith(magic)), "")
