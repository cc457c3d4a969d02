# SPDX-License-Identifier: Apache-2.0
"""One stream of a connection: what comes in waits here, what goes out waits for credit. The same on both ends.

A stream ends when either side closes it. Whoever still receives gets what was sent before, then an exception; whoever
still sends gets that exception at once. Thus a handler that receives or sends learns that the other side has left.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Protocol

from enclavekit_core.errors import EnclavekitError, InputError, RemoteProtocolError

from enclavekit_pipeline.wire.flow import ReceiveCredit, SendCredit
from enclavekit_pipeline.wire.frames import (
    DATA_BYTES,
    DATA_KINDS,
    HEADER,
    RECORDS_BYTES,
    Frame,
    Kind,
    data_frame_header,
    decode_credit,
    encode_credit,
)
from enclavekit_pipeline.wire.messages import CODE_INPUT, Failure, decode_payload

FIRST_BYTES = 16 * 1024 - HEADER.size  # of a frame: with its header one record of TLS
MAX_OTHER_FRAMES = 64  # queued at once on a stream; data is bounded by credit, this bounds what has none


class RequestRefused(RemoteProtocolError):
    """The other side said no, or could not; the text is its own."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.text)
        self.code = failure.code
        if failure.code == CODE_INPUT:
            self.exit_code = InputError.exit_code


class StreamClosed(RemoteProtocolError):
    """The other side has closed the stream, without a reason in words."""


class Link(Protocol):
    """What a stream needs of its connection."""

    async def send(self, frame: Frame) -> None: ...
    async def send_raw(self, *parts: bytes | memoryview) -> None: ...
    async def flush(self) -> None: ...
    def recycle(self, frame: Frame) -> None: ...
    def post(self, frame: Frame) -> None: ...
    def failure(self) -> Exception: ...
    def release(self, stream: Stream) -> None: ...
    async def open_stream(self) -> Stream: ...
    @property
    def has_ended(self) -> bool: ...


class Stream:
    """One request's frames in both directions."""

    def __init__(self, connection: Link, number: int) -> None:
        self.number = number
        self.connection = connection
        self.closed_by_peer = asyncio.Event()
        """Also set when the connection has ended; for handlers that neither receive nor send for long."""
        self._incoming: deque[Frame | None] = deque()  # None: nothing more comes
        self._arrived = asyncio.Event()
        self._waiting_bytes = 0  # of data in there
        self._gathered: tuple[int, asyncio.Future[None]] | None = None  # at so many of them somebody wakes up
        self._send: dict[Kind, SendCredit] = {}
        self._receive: dict[Kind, ReceiveCredit] = {}
        self._granted = asyncio.Event()
        self._ended: set[Kind] = set()
        self._others = 0
        self._refusal: EnclavekitError | None = None
        self._closed = False

    async def send(self, kind: Kind, payload: bytes = b"") -> None:
        self._check_open()
        await self.connection.send(Frame(kind, payload, self.number))

    async def send_data(self, kind: Kind, data: bytes | memoryview) -> None:
        """Send data as fast as the peer takes it; afterwards `data` is no longer needed."""
        credit, view = self._credit_of(kind), memoryview(data)
        most = RECORDS_BYTES if kind is Kind.RECORDS else DATA_BYTES
        begin, size, send = 0, len(view), self.connection.send_raw
        while begin < size:
            self._check_open()
            while not (room := credit.room(min(size - begin, most))):
                self._granted.clear()
                await self._granted.wait()
                self._check_open()
            credit.spend(room)
            # the header shares a record of TLS with the first of the data; the rest is sent from where it lies
            first = b"".join((data_frame_header(self.number, kind, room), view[begin : begin + FIRST_BYTES][:room]))
            if room <= FIRST_BYTES:
                await send(first)
            else:
                await send(first, view[begin + FIRST_BYTES : begin + room])
            begin += room
        if size > FIRST_BYTES and not isinstance(view.obj, bytes):
            await self.connection.flush()

    async def send_end(self, kind: Kind) -> None:
        self._check_open()
        await self.connection.send(Frame(kind, b"", self.number, end=True))

    async def receive(self) -> Frame:
        """Return the next frame. Raises StreamClosed once the peer has closed the stream, TransportError once the
        connection has ended."""
        while not self._incoming:
            self._arrived.clear()
            await self._arrived.wait()
        frame = self._incoming[0]
        if frame is None:
            raise self._failure()
        self._incoming.popleft()
        if frame.kind in DATA_KINDS:
            self._waiting_bytes -= frame.size
        else:
            self._others -= 1
        return frame

    def has_next(self, kind: Kind) -> bool:
        """Return whether `receive` has a frame of that kind to give at once."""
        frame = self._incoming[0] if self._incoming else None
        return frame is not None and frame.kind is kind

    async def gather(self, least: int, patience_s: float) -> None:
        """Wait until `least` bytes of data lie here, or something else does; no longer than `patience_s`.

        Whoever is to take much at once spares himself being woken up for each part of it.
        """
        if self._waiting_bytes >= least or not all(_is_content(frame) for frame in self._incoming):
            return
        loop = asyncio.get_running_loop()
        gathered: asyncio.Future[None] = loop.create_future()
        self._gathered = (least, gathered)
        patience = loop.call_later(patience_s, _wake, gathered)
        try:
            await gathered
        finally:
            patience.cancel()
            self._gathered = None

    async def consumed(self, frame: Frame) -> None:
        """Say that the data of `frame` has been passed on, so that the peer may send more."""
        self.connection.recycle(frame)
        if frame.end or self.closed_by_peer.is_set():
            return  # the end is free, and nothing follows
        if grant := self._receive[frame.kind].consume(frame.size):
            await self.connection.send_raw(encode_credit(self.number, frame.kind, grant))

    def close(self) -> None:
        """Say that nothing more comes from here, and that what still comes is not wanted. Idempotent; never waits."""
        if not self._closed:
            self._closed = True
            self.connection.post(Frame(Kind.CLOSE, b"", self.number))
            self.connection.release(self)

    def deliver(self, frame: Frame) -> None:
        """Take a frame from the connection. Raises RemoteProtocolError if it breaks a limit."""
        if self.closed_by_peer.is_set():
            raise RemoteProtocolError(f"cannot read frame: {frame.kind.name} on a stream that its sender has closed")
        if frame.kind is Kind.CREDIT:
            kind, count = decode_credit(frame.payload)
            self._credit_of(kind).grant(count)
            self._granted.set()
            return
        if frame.kind is Kind.CLOSE:
            self.end()
            return
        if frame.kind in DATA_KINDS:
            if frame.kind in self._ended or (frame.end and frame.size):
                raise RemoteProtocolError(f"cannot read frame: {frame.kind.name} after or with its end")
            if frame.end:
                self._ended.add(frame.kind)
            else:
                if frame.kind not in self._receive:
                    self._receive[frame.kind] = ReceiveCredit()
                self._receive[frame.kind].receive(frame.size)
        else:
            if frame.kind is Kind.ERROR:
                self._refusal = RequestRefused(decode_payload(Failure, frame.payload))
            self._others += 1
            if self._others > MAX_OTHER_FRAMES:
                raise RemoteProtocolError("cannot read frame: too many at once")
        self._add(frame)

    def end(self) -> None:
        """Wake up whoever waits: the peer, or the connection, is done with this stream."""
        self.closed_by_peer.set()
        self._add(None)
        self._granted.set()

    def _add(self, frame: Frame | None) -> None:
        self._incoming.append(frame)
        self._arrived.set()
        if frame is not None and frame.kind in DATA_KINDS:
            self._waiting_bytes += frame.size
        if self._gathered is not None and (self._waiting_bytes >= self._gathered[0] or not _is_content(frame)):
            _wake(self._gathered[1])

    def _credit_of(self, kind: Kind) -> SendCredit:
        return self._send.setdefault(kind, SendCredit())

    def _check_open(self) -> None:
        if self.closed_by_peer.is_set():
            raise self._failure()

    def _failure(self) -> Exception:
        if self._refusal is not None:
            return self._refusal
        if self.connection.has_ended:
            return self.connection.failure()
        return StreamClosed("cannot go on: the other side has closed the stream")


def _is_content(frame: Frame | None) -> bool:
    return frame is not None and frame.kind in DATA_KINDS and not frame.end


def _wake(waiting: asyncio.Future[None]) -> None:
    if not waiting.done():
        waiting.set_result(None)
