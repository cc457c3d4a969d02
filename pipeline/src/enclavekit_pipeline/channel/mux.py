# SPDX-License-Identifier: Apache-2.0
"""Streams over one connection: reads frames, hands them out, keeps the credit of both directions. The asyncio shell of
`frames` and `flow`, the same on both ends.
"""

from __future__ import annotations

import asyncio
import contextlib

from enclavekit_core.errors import RemoteProtocolError, TransportError

from enclavekit_pipeline.wire.flow import ReceiveCredit, SendCredit
from enclavekit_pipeline.wire.frames import (
    CONTROL_STREAM,
    DATA_KINDS,
    MAX_PAYLOAD_BYTES,
    Frame,
    FrameDecoder,
    Kind,
    decode_credit,
    encode,
    encode_credit,
)

READ_BYTES = 256 * 1024
MAX_STREAMS = 64  # open at once on one connection; more is an attack or a bug
MAX_OTHER_FRAMES = 64  # queued at once on a stream; data is bounded by credit, this bounds what has none
CLOSE_TIMEOUT_S = 2.0  # for the peer's part in ending TLS, which it may never do


class Stream:
    """One request's frames in both directions."""

    def __init__(self, connection: Connection, number: int) -> None:
        self.number = number
        self._connection = connection
        self._incoming: asyncio.Queue[Frame | None] = asyncio.Queue()
        self._send = {kind: SendCredit() for kind in DATA_KINDS}
        self._receive = {kind: ReceiveCredit() for kind in DATA_KINDS}
        self._granted = asyncio.Event()
        self._ended: set[Kind] = set()
        self._others = 0

    async def send(self, kind: Kind, payload: bytes = b"") -> None:
        await self._connection.send(Frame(kind, payload, self.number))

    async def send_data(self, kind: Kind, data: bytes) -> None:
        """Send data as fast as the peer takes it."""
        credit, view = self._send[kind], memoryview(data)
        while view:
            while not (room := credit.room(min(len(view), MAX_PAYLOAD_BYTES))):
                self._granted.clear()
                self._connection.check_open()
                await self._granted.wait()
                self._connection.check_open()
            part, view = bytes(view[:room]), view[room:]
            credit.spend(room)
            await self._connection.send(Frame(kind, part, self.number))

    async def send_end(self, kind: Kind) -> None:
        await self._connection.send(Frame(kind, b"", self.number, end=True))

    async def receive(self) -> Frame:
        """Return the next frame. Raises TransportError once the connection has ended."""
        frame = await self._incoming.get()
        if frame is None:
            self._incoming.put_nowait(None)
            raise self._connection.failure()
        self._others -= frame.kind not in DATA_KINDS
        return frame

    async def consumed(self, frame: Frame) -> None:
        """Say that the data of `frame` has been passed on, so that the peer may send more."""
        if frame.end:
            return  # the end is free, and nothing follows it
        if grant := self._receive[frame.kind].consume(len(frame.payload)):
            await self._connection.send_raw(encode_credit(self.number, frame.kind, grant))

    def deliver(self, frame: Frame) -> None:
        """Take a frame from the connection. Raises RemoteProtocolError if it breaks a limit."""
        if frame.kind is Kind.CREDIT:
            kind, count = decode_credit(frame.payload)
            self._send[kind].grant(count)
            self._granted.set()
            return
        if frame.kind in DATA_KINDS:
            if frame.kind in self._ended or (frame.end and frame.payload):
                raise RemoteProtocolError(f"cannot read frame: {frame.kind.name} after or with its end")
            if frame.end:
                self._ended.add(frame.kind)
            else:
                self._receive[frame.kind].receive(len(frame.payload))
        else:
            self._others += 1
            if self._others > MAX_OTHER_FRAMES:
                raise RemoteProtocolError("cannot read frame: too many at once")
        self._incoming.put_nowait(frame)

    def end(self) -> None:
        """Wake up whoever waits: the connection is over."""
        self._incoming.put_nowait(None)
        self._granted.set()


class Connection:
    """A connected pair of asyncio streams. One task runs `run`; any number send."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, peer: object) -> None:
        self._reader, self._writer, self._peer = reader, writer, peer
        self._decoder = FrameDecoder()
        self._pending: list[Frame] = []
        self._streams: dict[int, Stream] = {}
        self._error: Exception | None = None
        self._ended = False
        self.opened: asyncio.Queue[tuple[Stream, Frame] | None] = asyncio.Queue()

    async def send(self, frame: Frame) -> None:
        await self.send_raw(encode(frame))

    async def send_raw(self, data: bytes) -> None:
        self.check_open()
        try:
            self._writer.write(data)
            await self._writer.drain()
        except OSError as exc:
            self._error = self._error or exc
            raise self.failure() from exc

    async def read_frame(self) -> Frame:
        """Return the next frame of the handshake. Raises TransportError or RemoteProtocolError."""
        while not self._pending:
            if not await self._read_more():
                raise self.failure()
        return self._pending.pop(0)

    async def _read_more(self) -> bool:
        try:
            data = await self._reader.read(READ_BYTES)
        except OSError as exc:
            self._error = exc
            return False
        if not data:
            self._decoder.feed_eof()
            return False
        self._pending += self._decoder.feed(data)
        return True

    def open_stream(self, number: int) -> Stream:
        stream = self._streams[number] = Stream(self, number)
        return stream

    def forget(self, stream: Stream) -> None:
        self._streams.pop(stream.number, None)

    async def run(self, *, accept_streams: bool) -> None:
        """Deliver frames until the connection ends; its reason is then in `failure()`.

        Args:
            accept_streams: whether the peer may open streams; they arrive in `opened`.
        """
        try:
            while True:
                for frame in self._pending:
                    self._deliver(frame, accept_streams)
                self._pending.clear()
                if not await self._read_more():
                    return
        except RemoteProtocolError as exc:
            self._error = exc
        finally:
            self._ended = True
            for stream in self._streams.values():
                stream.end()
            self.opened.put_nowait(None)

    def _deliver(self, frame: Frame, accept_streams: bool) -> None:
        stream = self._streams.get(frame.stream)
        if stream is not None:
            if frame.kind is Kind.OPEN:
                raise RemoteProtocolError(f"cannot read frame: stream {frame.stream} is open already")
            stream.deliver(frame)
        elif frame.kind is Kind.OPEN and accept_streams and frame.stream != CONTROL_STREAM:
            if len(self._streams) >= MAX_STREAMS:
                raise RemoteProtocolError(f"cannot read frame: more than {MAX_STREAMS} streams at once")
            self.opened.put_nowait((self.open_stream(frame.stream), frame))
        # else: for a stream that has just ended; the sender could not know yet

    def check_open(self) -> None:
        if self._ended:
            raise self.failure()

    def failure(self) -> Exception:
        """Return why nothing more comes."""
        if isinstance(self._error, RemoteProtocolError):
            return self._error
        return TransportError("keep the connection to", self._peer, self._error or "it was closed")

    async def close(self) -> None:
        """End the connection; what was sent before still goes out, if the peer takes it in time."""
        self._writer.close()
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await self._writer.wait_closed()
        self.abort()

    def abort(self) -> None:
        """End the connection at once."""
        # Python 3.11.2, Debian's, fails here with it once a TLS connection has ended by itself; later ones do nothing
        with contextlib.suppress(AttributeError):
            self._writer.transport.abort()
