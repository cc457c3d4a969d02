# SPDX-License-Identifier: Apache-2.0
"""Frame codec of the pipeline channel: pure, no I/O.

Source: docs/reference/pipeline-wire.md. House rule: everything that knows the byte layout lives in this file.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass

from enclavekit_core.errors import LocalProtocolError, RemoteProtocolError

PROTOCOL_VERSION = 3
# that is still spoken; 1 had no end of streams, so one request was one connection, and 2 had SHA-256 in copies
OLDEST_VERSION = 3
HEADER = struct.Struct(">BBHI")  # kind u8, flags u8, stream u16, length u32: 8 bytes, big-endian
CREDIT = struct.Struct(">BI")  # kind of the data that is granted, bytes
MAX_PAYLOAD_BYTES = 64 * 1024  # small enough to interleave, and for malloc to reuse; large enough to stream
DATA_BYTES = MAX_PAYLOAD_BYTES - HEADER.size  # what we send of much data: with its header it fills records of TLS
MAX_STREAM = 0xFFFF
CONTROL_STREAM = 0
HOST_STREAMS = range(1, 0x8000)  # who opens a stream is seen by its number: both sides open without asking
ENCLAVE_STREAMS = range(0x8000, 0x10000)
FLAG_END = 1  # the last frame of this kind on this stream


class Kind(enum.IntEnum):
    """What a frame is: 1..4 make the handshake, in this order, 5 and 6 keep the connection, the rest is of streams."""

    HELLO, EVIDENCE, AUTH, ACCEPT = 1, 2, 3, 4
    PING, PONG = 5, 6
    OPEN, OPENED = 16, 17
    STDIN, STDOUT, STDERR = 18, 19, 20
    CREDIT, SIGNAL, EXIT, DONE, ERROR = 21, 22, 23, 24, 25
    CLOSE, INFO = 26, 27
    RECORDS, ANSWERS = 32, 33  # of copies, see tree_records
    RESIZE, JOB, JOBS, PROCESSES, GAP, SIGNALLED = 56, 57, 58, 59, 60, 61

    __hash__ = int.__hash__  # Enum's is Python, and each frame is looked up several times


KINDS = {kind.value: kind for kind in Kind}
DATA_KINDS = frozenset({Kind.STDIN, Kind.STDOUT, Kind.STDERR, Kind.RECORDS, Kind.ANSWERS})


@dataclass(frozen=True, slots=True)
class Frame:
    kind: Kind
    payload: bytes = b""
    stream: int = CONTROL_STREAM
    """0..65535; 0 is the connection itself."""
    end: bool = False
    """No more of this kind follows on this stream; only data has an end."""


def encode(frame: Frame) -> bytes:
    """Return header + payload. Raises LocalProtocolError if it does not fit."""
    if len(frame.payload) > MAX_PAYLOAD_BYTES:
        raise LocalProtocolError(f"cannot encode frame: payload of {len(frame.payload)} > {MAX_PAYLOAD_BYTES} bytes")
    if not 0 <= frame.stream <= MAX_STREAM:
        raise LocalProtocolError(f"cannot encode frame: no stream {frame.stream}")
    if frame.end and frame.kind not in DATA_KINDS:
        raise LocalProtocolError(f"cannot encode frame: {frame.kind.name} has no end")
    header = HEADER.pack(frame.kind, FLAG_END if frame.end else 0, frame.stream, len(frame.payload))
    return b"".join((header, frame.payload))


def encode_data(stream: int, kind: Kind, data: bytes | memoryview) -> bytes:
    """Return what `encode` does for data on an open stream, which is most of what is sent."""
    return b"".join((HEADER.pack(kind, 0, stream, len(data)), data))


def encode_credit(stream: int, kind: Kind, count: int) -> bytes:
    """Return the frame that lets the peer send `count` more bytes of `kind` on `stream`."""
    return encode(Frame(Kind.CREDIT, CREDIT.pack(kind, count), stream))


def decode_credit(payload: bytes) -> tuple[Kind, int]:
    """Return (kind, bytes). Raises RemoteProtocolError."""
    try:
        number, count = CREDIT.unpack(payload)
        kind = Kind(number)
    except (struct.error, ValueError) as exc:
        raise RemoteProtocolError("cannot read frame: credit is malformed") from exc
    if kind not in DATA_KINDS:
        raise RemoteProtocolError(f"cannot read frame: {kind.name} takes no credit")
    return kind, count


class FrameDecoder:
    """Bytes in, frames out; holds at most one incomplete frame."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes | memoryview) -> list[Frame]:
        """Return the frames that `data` completes. Raises RemoteProtocolError, after which the stream is lost."""
        frames: list[Frame] = []
        view, position = memoryview(data), 0
        if self._buffer:  # a frame that comes in parts; those after it are read where they lie
            while (missing := self._count_missing()) and position < len(view):
                self._buffer += view[position : position + missing]
                position += missing
            if missing:
                return frames
            position = min(position, len(view))
            with memoryview(self._buffer) as whole:
                frames += self._decode_whole(whole, 0)[0]
            self._buffer.clear()
        decoded, position = self._decode_whole(view, position)
        self._buffer += view[position:]
        return frames + decoded

    def feed_eof(self) -> None:
        """Say that no more comes. Raises RemoteProtocolError if a frame was cut."""
        if self._buffer:
            raise RemoteProtocolError("cannot read frame: the connection ended in the middle of it")

    def _count_missing(self) -> int:
        """Return how many bytes the header or, once it is there, the frame in the buffer still lacks."""
        if len(self._buffer) < HEADER.size:
            return HEADER.size - len(self._buffer)
        return HEADER.size + _decode_header(self._buffer, 0)[3] - len(self._buffer)

    @staticmethod
    def _decode_whole(view: memoryview, position: int) -> tuple[list[Frame], int]:
        """Return the whole frames from `position` on, and where the first that is not whole begins."""
        frames: list[Frame] = []
        while len(view) - position >= HEADER.size:
            kind, end, stream, length = _decode_header(view, position)
            start = position + HEADER.size
            if len(view) < start + length:
                break
            position = start + length
            frames.append(Frame(kind, bytes(view[start:position]), stream, end))
        return frames, position


def _decode_header(data: bytearray | memoryview, position: int) -> tuple[Kind, bool, int, int]:
    """Return (kind, end, stream, length). Raises RemoteProtocolError."""
    number, flags, stream, length = HEADER.unpack_from(data, position)
    kind = KINDS.get(number)
    if kind is None:
        raise RemoteProtocolError(f"cannot read frame: no kind {number}")
    if length > MAX_PAYLOAD_BYTES:
        raise RemoteProtocolError(f"cannot read frame: it announces {length} bytes, the limit is {MAX_PAYLOAD_BYTES}")
    if flags & ~FLAG_END or (flags and kind not in DATA_KINDS):
        raise RemoteProtocolError(f"cannot read frame: flags {flags:#x} of {kind.name} are unknown")
    return kind, bool(flags & FLAG_END), stream, length
