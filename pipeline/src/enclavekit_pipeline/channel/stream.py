# SPDX-License-Identifier: Apache-2.0
"""One stream of a connection: what comes in waits here, what goes out waits for credit. The same on both ends.

A stream ends when either side closes it. Whoever still receives gets what was sent before, then an exception; whoever
still sends gets that exception at once. Thus a handler that receives or sends learns that the other side has left.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from enclavekit_core.errors import EnclavekitError, InputError, RemoteProtocolError

from enclavekit_pipeline.wire.flow import ReceiveCredit, SendCredit
from enclavekit_pipeline.wire.frames import (
    DATA_BYTES,
    DATA_KINDS,
    Frame,
    Kind,
    decode_credit,
    encode_credit,
    encode_data,
)
from enclavekit_pipeline.wire.messages import CODE_INPUT, Failure, decode_payload

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
    async def send_raw(self, data: bytes) -> None: ...
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
        self._incoming: asyncio.Queue[Frame | None] = asyncio.Queue()
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
        begin, size, send = 0, len(view), self.connection.send_raw
        while begin < size:
            self._check_open()
            while not (room := credit.room(min(size - begin, DATA_BYTES))):
                self._granted.clear()
                await self._granted.wait()
                self._check_open()
            credit.spend(room)
            await send(encode_data(self.number, kind, view[begin : begin + room]))
            begin += room

    async def send_end(self, kind: Kind) -> None:
        self._check_open()
        await self.connection.send(Frame(kind, b"", self.number, end=True))

    async def receive(self) -> Frame:
        """Return the next frame. Raises StreamClosed once the peer has closed the stream, TransportError once the
        connection has ended."""
        frame = await self._incoming.get()
        if frame is None:
            self._incoming.put_nowait(None)
            raise self._failure()
        self._others -= frame.kind not in DATA_KINDS
        return frame

    async def consumed(self, frame: Frame) -> None:
        """Say that the data of `frame` has been passed on, so that the peer may send more."""
        if frame.end or self.closed_by_peer.is_set():
            return  # the end is free, and nothing follows
        if grant := self._receive[frame.kind].consume(len(frame.payload)):
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
            if frame.kind in self._ended or (frame.end and frame.payload):
                raise RemoteProtocolError(f"cannot read frame: {frame.kind.name} after or with its end")
            if frame.end:
                self._ended.add(frame.kind)
            else:
                if frame.kind not in self._receive:
                    self._receive[frame.kind] = ReceiveCredit()
                self._receive[frame.kind].receive(len(frame.payload))
        else:
            if frame.kind is Kind.ERROR:
                self._refusal = RequestRefused(decode_payload(Failure, frame.payload))
            self._others += 1
            if self._others > MAX_OTHER_FRAMES:
                raise RemoteProtocolError("cannot read frame: too many at once")
        self._incoming.put_nowait(frame)

    def end(self) -> None:
        """Wake up whoever waits: the peer, or the connection, is done with this stream."""
        self.closed_by_peer.set()
        self._incoming.put_nowait(None)
        self._granted.set()

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
