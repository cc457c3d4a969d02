# SPDX-License-Identifier: Apache-2.0
"""Streams over one connection: reads frames, hands them out, numbers streams, watches that the peer answers. The
asyncio shell of the modules in `wire`, the same on both ends.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque

from enclavekit_core.errors import EnclavekitError, RemoteProtocolError, TransportError

from enclavekit_pipeline.channel.stream import RequestRefused, Stream, StreamClosed
from enclavekit_pipeline.channel.tls_socket import READ_BYTES, TlsSocket
from enclavekit_pipeline.wire.frames import (
    CONTROL_STREAM,
    ENCLAVE_STREAMS,
    HEADER,
    HOST_STREAMS,
    MAX_RECORDS_BYTES,
    Frame,
    FrameDecoder,
    Kind,
    encode,
)
from enclavekit_pipeline.wire.liveness import MAX_PING_BYTES, Liveness, Verdict
from enclavekit_pipeline.wire.messages import Failure, decode_payload
from enclavekit_pipeline.wire.numbering import MAX_STREAMS, StreamNumbers

__all__ = ["Connection", "RequestRefused", "Stream", "StreamClosed"]

MAX_PINGS = 8  # of the peer in one read
MAX_UNSENT_PONGS = 8  # of a peer that does not read: no more are added
CLOSE_TIMEOUT_S = 2.0  # for the peer's part in ending TLS, which it may never do
PROBE = b"probe"  # payload of the PING of `ping`; Liveness uses numbers


class Connection:
    """A connected socket with TLS on it. One task runs `run`; any number send."""

    def __init__(
        self,
        wire: TlsSocket,
        peer: object,
        *,
        opens: range = HOST_STREAMS,
    ) -> None:
        """`opens` are the numbers of the streams that this side opens; the peer opens the others."""
        self._wire, self._peer = wire, peer
        self._decoder = FrameDecoder()
        self._after_large = False
        self._pending: list[Frame] = []
        self._streams: dict[int, Stream] = {}
        self._closing: set[int] = set()  # closed here, not yet by the peer: what comes for them is dropped
        self._numbers = StreamNumbers(opens)
        self._peer_numbers = ENCLAVE_STREAMS if opens is HOST_STREAMS else HOST_STREAMS
        self._peer_streams = 0
        self._freed = asyncio.Event()
        self._pings = 0
        self._pongs: deque[int] = deque()  # at how many sent bytes each of ours is out
        self._probe: asyncio.Future[None] | None = None
        self._probing = asyncio.Lock()
        self._liveness: Liveness | None = None
        self._error: Exception | None = None
        self.has_ended = False
        self.peer_finished = False
        """The peer opens no more streams."""
        self.accepting = opens is ENCLAVE_STREAMS
        """Whether the peer may open streams; they arrive in `opened`, None is the last."""
        self.opened: asyncio.Queue[tuple[Stream, Frame] | None] = asyncio.Queue()

    async def send(self, frame: Frame) -> None:
        await self.send_raw(encode(frame))

    async def send_raw(self, *parts: bytes | memoryview) -> None:
        """Send what is encoded already, with nothing in between; `flush` says when it may change again."""
        self.check_open()
        try:
            self._wire.write(*parts)
            await self._wire.drain()
        except OSError as exc:
            self._error = self._error or exc
            raise self.failure() from exc

    async def flush(self) -> None:
        """Wait until the memory of what has been sent so far is no longer needed."""
        try:
            await self._wire.flush()
        except OSError as exc:
            self._error = self._error or exc
            raise self.failure() from exc

    def post(self, frame: Frame) -> None:
        """Send a small frame without waiting, or not at all if the connection has ended."""
        if not self.has_ended and not self._wire.is_closing():
            self._wire.write(encode(frame))

    async def read_frame(self) -> Frame:
        """Return the next frame of the handshake. Raises TransportError or RemoteProtocolError."""
        while not self._pending:
            if not await self._read_more():
                raise self.failure()
        return self._pending.pop(0)

    async def _read_more(self) -> bool:
        """Add to `_pending` what comes; return whether something has. Large payloads are read where they stay."""
        room = self._decoder.room
        try:
            if room is None:
                # one large payload is seldom alone: of what comes next only the header, which says where to read it
                data = await self._wire.read(HEADER.size if self._after_large else READ_BYTES)
                count = len(data)
            else:
                count = await self._wire.fill(room)
        except OSError as exc:
            self._error = self._error or exc
            return False
        if not count:
            if self._error is None:
                self._decoder.feed_eof()
            return False
        self._after_large = room is not None
        self._pending += self._decoder.feed(data) if room is None else self._decoder.filled(count)
        return True

    def recycle(self, frame: Frame) -> None:
        """Take back the memory of a frame that has been passed on."""
        self._decoder.recycle(frame)

    async def open_stream(self) -> Stream:
        """Return a new stream of ours, once there is room for one. Raises what `failure` returns."""
        while self._numbers.is_full:
            self._freed.clear()
            self.check_open()
            await self._freed.wait()
        self.check_open()
        return self._add_stream(self._numbers.take())

    def _add_stream(self, number: int) -> Stream:
        stream = self._streams[number] = Stream(self, number)
        return stream

    def release(self, stream: Stream) -> None:
        """Take note that `stream` is closed on our side."""
        del self._streams[stream.number]
        if not self._streams:
            self._decoder.forget_spare()
        if stream.closed_by_peer.is_set():
            self._free(stream.number)
        else:
            self._closing.add(stream.number)

    def _free(self, number: int) -> None:
        if number in self._peer_numbers:
            self._peer_streams -= 1
        else:
            self._numbers.release(number)
            self._freed.set()

    async def run(self) -> None:
        """Deliver frames until the connection ends; its reason is then in `failure()`."""
        self._liveness = Liveness(asyncio.get_running_loop().time())
        self._decoder.large_bytes = MAX_RECORDS_BYTES  # who is at the other end is known by now
        watching = asyncio.create_task(self._watch(self._liveness))
        try:
            while True:
                self._pings = 0
                for frame in self._pending:
                    self._deliver(frame)
                self._pending.clear()
                if not await self._read_more():
                    return
        except EnclavekitError as exc:
            self._error = exc
        finally:
            watching.cancel()
            self._end()

    def _end(self) -> None:
        """Wake up all who wait: nothing more comes."""
        if not self.has_ended:
            self.has_ended = True
            for stream in self._streams.values():
                stream.end()
            self._freed.set()
            if self._probe is not None and not self._probe.done():
                self._probe.set_result(None)
            self.opened.put_nowait(None)

    async def _watch(self, liveness: Liveness) -> None:
        """Ask the peer for signs of life, and end the connection if none come."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(max(liveness.next_check - loop.time(), 0))
            match liveness.check(loop.time()):
                case Verdict.SEND_PING:
                    self.post(Frame(Kind.PING, liveness.token))
                case Verdict.DEAD:
                    self._error = TransportError("keep the connection to", self._peer, "it does not answer any more")
                    self.abort()
                    return

    async def ping(self) -> float:
        """Return the seconds that an answer takes; `run` must be running. Raises what `failure` returns."""
        loop = asyncio.get_running_loop()
        async with self._probing:
            self.check_open()
            self._probe = loop.create_future()
            begun = loop.time()
            self.post(Frame(Kind.PING, PROBE))
            await self._probe
            self.check_open()
            return loop.time() - begun

    def _deliver(self, frame: Frame) -> None:
        number, kind = frame.stream, frame.kind
        if (stream := self._streams.get(number)) is not None:
            if kind is Kind.OPEN:
                raise RemoteProtocolError(f"cannot read frame: stream {number} is open already")
            stream.deliver(frame)
        elif number == CONTROL_STREAM:
            self._take_control(frame)
        elif number in self._closing:
            if kind is Kind.CLOSE:
                self._closing.discard(number)
                self._free(number)
        elif kind is not Kind.OPEN:
            raise RemoteProtocolError(f"cannot read frame: {kind.name} for a stream that is not open")
        else:
            self._take_open(frame)

    def _take_open(self, frame: Frame) -> None:
        if frame.stream not in self._peer_numbers:
            raise RemoteProtocolError(f"cannot read frame: {frame.stream} is no number for a stream of its sender")
        if not self.accepting or self.peer_finished:
            raise RemoteProtocolError("cannot read frame: OPEN that nobody waits for")
        if self._peer_streams >= MAX_STREAMS:
            raise RemoteProtocolError(f"cannot read frame: more than {MAX_STREAMS} streams at once")
        self._peer_streams += 1
        self.opened.put_nowait((self._add_stream(frame.stream), frame))

    def _take_control(self, frame: Frame) -> None:
        match frame.kind:
            case Kind.PING:
                self._pings += 1
                if self._pings > MAX_PINGS or len(frame.payload) > MAX_PING_BYTES:
                    raise RemoteProtocolError("cannot read frame: too many or too large PINGs")
                while self._pongs and self._pongs[0] <= self._wire.sent_bytes:
                    self._pongs.popleft()
                if len(self._pongs) < MAX_UNSENT_PONGS:
                    self.post(Frame(Kind.PONG, frame.payload))
                    self._pongs.append(self._wire.written_bytes)
            case Kind.PONG:
                if frame.payload == PROBE and self._probe is not None and not self._probe.done():
                    self._probe.set_result(None)
                elif self._liveness is not None:
                    self._liveness.pong(frame.payload, asyncio.get_running_loop().time())
            case Kind.CLOSE:
                self.peer_finished = True
                self.opened.put_nowait(None)
            case Kind.ERROR:
                raise RequestRefused(decode_payload(Failure, frame.payload))
            case _:
                raise RemoteProtocolError(f"cannot read frame: {frame.kind.name} without a stream")

    def finish(self) -> None:
        """Say that we open no more streams; those that are open go on."""
        self.post(Frame(Kind.CLOSE))

    def check_open(self) -> None:
        if self.has_ended:
            raise self.failure()

    def failure(self) -> Exception:
        """Return why nothing more comes."""
        if isinstance(self._error, EnclavekitError):
            return self._error
        return TransportError("keep the connection to", self._peer, self._error or "it was closed")

    async def close(self) -> None:
        """End the connection; what was sent before still goes out, if the peer takes it in time."""
        self._wire.close()
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await self._wire.wait_closed()
        self.abort()

    def abort(self) -> None:
        """End the connection at once."""
        self._end()
        self._wire.abort()
