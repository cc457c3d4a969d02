# SPDX-License-Identifier: Apache-2.0
"""A socket and a stream, joined: bytes, ends and resets of one are the other's. The same on both ends of a forward.

    the socket's peer sends its end       our end of data; the other way goes on
    it takes nothing any more             what comes for it is dropped; what it still says goes out
    it resets                             the stream is closed without an end
    the stream's end of data              shutdown(SHUT_WR)
    the stream closed without one         the socket is reset, once it has sent what was written to it
    the stream closed after one           what the socket still says is read away for a while: closing a TCP socket
                                          with unread bytes resets it, which destroys what was sent to it

Sockets are used without asyncio's transports, which throw away what has come in as soon as a write fails.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import socket
import struct
import termios
from dataclasses import dataclass
from typing import Any

from enclavekit_core.address import TcpAddress, UnixAddress
from enclavekit_core.errors import RemoteProtocolError, describe_cause

from enclavekit_pipeline.channel.mux import Stream
from enclavekit_pipeline.wire.forward_messages import ForwardAddress
from enclavekit_pipeline.wire.frames import Kind

READ_BYTES = 256 * 1024
LINGER_S = 2.0
DRAIN_PAUSE_S = 0.02
DIAL_TIMEOUT_S = 10.0
DIAL_PAUSE_S = 0.02  # a Unix socket with a full backlog says so instead of letting us wait
RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # struct linger: on, 0 s


@dataclass
class Relayed:
    """How many bytes went through a socket."""

    read: int = 0
    written: int = 0
    reset: bool = False

    def __str__(self) -> str:
        return f"{self.read} bytes out, {self.written} in" + (", reset" if self.reset else "")


class _Flows:
    def __init__(self, stream: Stream, sock: socket.socket, sends: Kind, takes: Kind) -> None:
        self._stream, self._socket, self._sends, self._takes = stream, sock, sends, takes
        self._loop = asyncio.get_running_loop()
        self.written_all = asyncio.Event()
        """Nothing more goes to the socket: all of it is there, or it takes no more."""
        self.end_taken = False
        self.relayed = Relayed()

    async def read_socket(self) -> None:
        """Send what the socket says, to its end. Raises OSError if it was reset, and what `Stream` raises."""
        while data := await self._loop.sock_recv(self._socket, READ_BYTES):
            self.relayed.read += len(data)
            await self._stream.send_data(self._sends, data)
        await self._stream.send_end(self._sends)

    async def write_socket(self) -> None:
        """Write what the stream says until it is closed; only then does this end, with the reason."""
        while True:
            frame = await self._stream.receive()
            if frame.kind is not self._takes:
                raise RemoteProtocolError(f"cannot read frame: {frame.kind.name} does not belong to a forward")
            if frame.payload and not self.written_all.is_set():
                try:
                    await self._loop.sock_sendall(self._socket, frame.payload)
                    self.relayed.written += len(frame.payload)
                except OSError:
                    self.written_all.set()
            await self._stream.consumed(frame)
            if frame.end:
                self.end_taken = True
                with contextlib.suppress(OSError):  # gone: nobody to tell
                    self._socket.shutdown(socket.SHUT_WR)
                self.written_all.set()

    async def discard(self) -> None:
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(LINGER_S):
                while await self._loop.sock_recv(self._socket, READ_BYTES):
                    pass

    async def drain(self) -> None:
        """Wait until the peer has what was written: a reset throws away what has not been sent."""
        if self._socket.family == socket.AF_UNIX:
            return  # there, what is written is with the peer
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(LINGER_S):
                while self._unsent():  # noqa: ASYNC110 - the kernel has no event for it
                    await asyncio.sleep(DRAIN_PAUSE_S)

    def _unsent(self) -> int:
        return int(struct.unpack("i", fcntl.ioctl(self._socket, termios.TIOCOUTQ, bytes(4)))[0])


async def relay(stream: Stream, sock: socket.socket, *, sends: Kind, takes: Kind) -> Relayed:
    """Join the two until both directions have ended or one side gives up; closes the socket, not the stream.

    Args:
        sends, takes: the kinds of data that go out and come in on `stream`.
    """
    sock.setblocking(False)
    flows = _Flows(stream, sock, sends, takes)
    reading = asyncio.create_task(flows.read_socket())
    writing = asyncio.create_task(flows.write_socket())
    written = asyncio.create_task(flows.written_all.wait())
    try:
        await asyncio.wait({reading, writing}, return_when=asyncio.FIRST_COMPLETED)
        if not writing.done() and not isinstance(reading.exception(), OSError):
            # our end is sent, or the stream takes no more; what it says still has to be written
            waiting = {writing, written} if reading.exception() is None else {writing}
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        if reading.done() and reading.exception() is None and written.done():
            return flows.relayed
        if writing.done() and flows.end_taken:
            await _stop(reading)
            await flows.discard()
            return flows.relayed
        flows.relayed.reset = True
        await flows.drain()
        reset(sock)
        return flows.relayed
    finally:
        await _stop(reading, writing, written)
        sock.close()


def reset(sock: socket.socket) -> None:
    """Close the socket so that its peer sees that something went wrong; does nothing to a closed one."""
    with contextlib.suppress(OSError):  # Unix sockets know no reset, their close is one
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
    sock.close()


async def _stop(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def dial(address: ForwardAddress, timeout_s: float = DIAL_TIMEOUT_S) -> socket.socket:
    """Return a connected, non-blocking socket. Raises OSError, with words that `explain` finds."""
    async with asyncio.timeout(timeout_s):
        match address:
            case UnixAddress(path):
                return await _dial_unix(path)
            case TcpAddress(host, port):
                return await _dial_tcp(host, port)


async def _dial_unix(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        while True:
            try:
                sock.connect(path)
                return sock
            except BlockingIOError:
                await asyncio.sleep(DIAL_PAUSE_S)
    except BaseException:
        sock.close()
        raise


async def _dial_tcp(host: str, port: int) -> socket.socket:
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except UnicodeError as exc:
        raise OSError(None, "no such host name") from exc
    failure = OSError(None, "no such host")
    for family, kind, proto, _, name in found:
        sock = socket.socket(family, kind | socket.SOCK_NONBLOCK, proto)
        try:
            await loop.sock_connect(sock, name)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return sock
        except OSError as exc:
            failure = exc
            sock.close()
        except BaseException:
            sock.close()
            raise
    raise failure


def explain(exc: OSError) -> str:
    """Return why a connection could not be made."""
    return describe_cause(exc) if exc.errno else str(exc.strerror or describe_cause(exc))
