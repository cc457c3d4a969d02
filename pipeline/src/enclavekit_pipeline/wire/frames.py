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
MAX_RECORDS_BYTES = 256 * 1024  # of copies: what each frame costs beside its bytes is paid a quarter as often
RECORDS_BYTES = MAX_RECORDS_BYTES - HEADER.size
MAX_SPARE = 8  # buffers that wait for the next large payloads: as many as one stream's credit lets come
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
    large: memoryview | None = None
    """Instead of `payload` if that has come as one of over MAX_PAYLOAD_BYTES: a view of memory that is used again once
    the frame has been passed on."""

    @property
    def content(self) -> bytes | memoryview:
        return self.payload if self.large is None else self.large

    @property
    def size(self) -> int:
        """Of the content, in bytes."""
        return len(self.content)


def max_payload(kind: Kind) -> int:
    """Return the most bytes that a frame of this kind may have."""
    return MAX_RECORDS_BYTES if kind is Kind.RECORDS else MAX_PAYLOAD_BYTES


def encode(frame: Frame) -> bytes:
    """Return header + payload. Raises LocalProtocolError if it does not fit."""
    if frame.size > (most := max_payload(frame.kind)):
        raise LocalProtocolError(f"cannot encode frame: payload of {frame.size} > {most} bytes")
    if not 0 <= frame.stream <= MAX_STREAM:
        raise LocalProtocolError(f"cannot encode frame: no stream {frame.stream}")
    if frame.end and frame.kind not in DATA_KINDS:
        raise LocalProtocolError(f"cannot encode frame: {frame.kind.name} has no end")
    header = HEADER.pack(frame.kind, FLAG_END if frame.end else 0, frame.stream, frame.size)
    return b"".join((header, frame.content))


def data_frame_header(stream: int, kind: Kind, count: int) -> bytes:
    """Return what goes before `count` bytes of data on an open stream."""
    return HEADER.pack(kind, 0, stream, count)


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
    """Bytes in, frames out; holds at most one incomplete frame.

    A large payload has memory of its own, into which the caller may read it without another copy: if there is `room`,
    that is where the next bytes go, and `filled` says how many came. Whoever is done with such a frame may `recycle`
    that memory, for the next.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._large: memoryview | None = None  # payload of the frame whose header is in the buffer
        self._filled = 0  # of that
        self._spare: list[memoryview] = []
        self.large_bytes = MAX_PAYLOAD_BYTES
        """No frame may have more than this, whatever its kind: MAX_RECORDS_BYTES for a peer that is known."""

    @property
    def room(self) -> memoryview | None:
        """Where the rest of a large payload goes; None unless one has begun."""
        return None if self._large is None else self._large[self._filled :]

    def filled(self, count: int) -> list[Frame]:
        """Return the frame that `count` bytes in `room` complete, if they do."""
        if self._large is None or not 0 <= count <= len(self._large) - self._filled:
            raise LocalProtocolError("cannot read frame: there is no such room")
        self._filled += count
        if self._filled < len(self._large):
            return []
        kind, end, stream, _ = self._decode_header(self._buffer, 0)
        frame = Frame(kind, b"", stream, end, self._large)
        self._buffer.clear()
        self._large, self._filled = None, 0
        return [frame]

    def recycle(self, frame: Frame) -> None:
        """Take back the memory of a large payload, which nobody may look at any more."""
        if frame.large is None or len(self._spare) >= MAX_SPARE:
            return
        memory = frame.large.obj
        if not any(spare.obj is memory for spare in self._spare):  # said twice it would be given out twice
            self._spare.append(memoryview(memory))

    def forget_spare(self) -> None:
        """Give up what was recycled: nothing large is expected soon."""
        self._spare.clear()

    def feed(self, data: bytes | memoryview) -> list[Frame]:
        """Return the frames that `data` completes. Raises RemoteProtocolError, after which the stream is lost."""
        frames: list[Frame] = []
        view, position = memoryview(data), 0
        while position < len(view):
            if (room := self.room) is not None:
                part = view[position : position + len(room)]
                room[: len(part)] = part
                position += len(part)
                frames += self.filled(len(part))
            elif self._buffer:  # a frame that comes in parts; those after it are read where they lie
                part = view[position : position + self._count_missing()]
                self._buffer += part
                position += len(part)
                if not self._begin_large() and not self._count_missing():
                    with memoryview(self._buffer) as whole:
                        frames += self._decode_whole(whole, 0)[0]
                    self._buffer.clear()
            else:
                decoded, position = self._decode_whole(view, position)
                frames += decoded
                if position < len(view):
                    self._buffer += view[position : position + HEADER.size]
                    position += len(self._buffer)
                    self._begin_large()
        return frames

    def feed_eof(self) -> None:
        """Say that no more comes. Raises RemoteProtocolError if a frame was cut."""
        if self._buffer:
            raise RemoteProtocolError("cannot read frame: the connection ended in the middle of it")

    def _begin_large(self) -> bool:
        """Make room for a payload that is large, once its header is in the buffer; return whether it is."""
        if len(self._buffer) != HEADER.size:
            return False
        length = self._decode_header(self._buffer, 0)[3]
        if length <= MAX_PAYLOAD_BYTES:
            return False
        memory = self._spare.pop() if self._spare else memoryview(bytearray(MAX_RECORDS_BYTES))
        self._large, self._filled = memory[:length], 0
        return True

    def _count_missing(self) -> int:
        """Return how many bytes the header or, once it is there, the frame in the buffer still lacks."""
        if len(self._buffer) < HEADER.size:
            return HEADER.size - len(self._buffer)
        return HEADER.size + self._decode_header(self._buffer, 0)[3] - len(self._buffer)

    def _decode_whole(self, view: memoryview, position: int) -> tuple[list[Frame], int]:
        """Return the whole frames from `position` on, and where the first begins that is not whole, or is large."""
        frames: list[Frame] = []
        while len(view) - position >= HEADER.size:
            kind, end, stream, length = self._decode_header(view, position)
            start = position + HEADER.size
            if len(view) < start + length or length > MAX_PAYLOAD_BYTES:
                break
            position = start + length
            frames.append(Frame(kind, bytes(view[start:position]), stream, end))
        return frames, position

    def _decode_header(self, data: bytearray | memoryview, position: int) -> tuple[Kind, bool, int, int]:
        """Return (kind, end, stream, length). Raises RemoteProtocolError."""
        number, flags, stream, length = HEADER.unpack_from(data, position)
        kind = KINDS.get(number)
        if kind is None:
            raise RemoteProtocolError(f"cannot read frame: no kind {number}")
        if length > MAX_PAYLOAD_BYTES and length > (most := min(max_payload(kind), self.large_bytes)):
            raise RemoteProtocolError(f"cannot read frame: it announces {length} bytes, the limit is {most}")
        if flags & ~FLAG_END or (flags and kind not in DATA_KINDS):
            raise RemoteProtocolError(f"cannot read frame: flags {flags:#x} of {kind.name} are unknown")
        return kind, bool(flags & FLAG_END), stream, length
