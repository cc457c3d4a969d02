# SPDX-License-Identifier: Apache-2.0
"""TLS on a connected socket for asyncio, reader and writer in one: OpenSSL reads and writes the socket itself.

asyncio's own TLS moves each byte through two memory BIOs and three buffers more, which costs two thirds of what the
cipher could do. Here a byte is copied once on its way out and once on its way in. The methods are those of
asyncio.StreamReader and StreamWriter that a Connection uses.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import ssl
from collections import deque
from collections.abc import Callable

READ_BYTES = 256 * 1024
SOCKET_BYTES = 512 * 1024  # of a Unix socket, if the system lets us: the kernel's 208 KiB are three frames
HIGH_WATER_BYTES = 512 * 1024  # `drain` waits above this
YIELD_BYTES = 1024 * 1024  # sent or read without waiting once; then others get their turn
SMALL_BYTES = 16 * 1024  # frames that are written in one turn go out as one record, up to the most that one holds
PLAIN_BYTES = 256 * 1024  # OpenSSL wants a write that has to wait repeated as it was: no more than this at a time


class TlsSocket:
    """Made by `connect` or `accept`, ended by `close` and `wait_closed`, or by `abort`."""

    def __init__(self, sock: ssl.SSLSocket) -> None:
        self._sock = sock
        self._descriptor = sock.fileno()  # to asyncio the number: of a socket it would ask the kernel, to describe it
        self._loop = asyncio.get_running_loop()
        self._buffer = bytearray(READ_BYTES)
        self._unsent: deque[memoryview] = deque()
        self._unsent_bytes = 0
        self._sent_bytes = 0  # of all that was written
        self._flushes: deque[tuple[int, asyncio.Future[None]]] = deque()  # at so many sent bytes somebody wants to know
        self._read_in_turn = self._sent_in_turn = 0
        self._filling: memoryview | None = None
        self._filled = 0
        self._watching = False
        self._readable: asyncio.Future[None] | None = None
        self._drained: asyncio.Future[None] | None = None
        self._sending = False
        self._soon: asyncio.Handle | None = None
        self._closing = False
        self._error: OSError | None = None

    @classmethod
    async def connect(cls, sock: socket.socket, context: ssl.SSLContext, server_hostname: str) -> TlsSocket:
        """Shake hands as the client; owns `sock` from here on. Raises OSError (ssl.SSLError is one)."""
        return await cls._wrap(
            lambda: context.wrap_socket(sock, server_hostname=server_hostname, do_handshake_on_connect=False), sock
        )

    @classmethod
    async def accept(cls, sock: socket.socket, context: ssl.SSLContext) -> TlsSocket:
        """Shake hands as the server; owns `sock` from here on. Raises OSError."""
        return await cls._wrap(lambda: context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False), sock)

    @classmethod
    async def _wrap(cls, wrap: Callable[[], ssl.SSLSocket], sock: socket.socket) -> TlsSocket:
        sock.setblocking(False)
        if sock.family == socket.AF_UNIX:  # others find out by themselves what fits
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BYTES)
        try:
            wrapped = wrap()
        except BaseException:
            sock.close()
            raise
        self = cls(wrapped)
        try:
            while True:
                try:
                    wrapped.do_handshake()
                    return self
                except ssl.SSLWantReadError:
                    await self._wait_readable()
                except ssl.SSLWantWriteError:
                    await self._wait_writable()
        except ssl.SSLEOFError as exc:
            self.abort()
            raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET)) from exc
        except BaseException:
            self.abort()
            raise

    def peer_certificate(self) -> bytes:
        """Return the peer's certificate in DER. Raises ssl.SSLError if it sent none."""
        der = self._sock.getpeercert(binary_form=True)
        if not der:
            raise ssl.SSLError("the peer sent no certificate")
        return der

    async def read(self, most: int = READ_BYTES) -> memoryview:
        """Return what is there, waiting for some; empty at the end. It is valid until the next read. Raises OSError."""
        view = memoryview(self._buffer)[: min(most, READ_BYTES)]
        while (count := self._read_into(view)) is None:
            self._read_in_turn = 0
            await self._wait_readable()
        await self._let_others(count)
        return view[:count]

    async def _let_others(self, count: int) -> None:
        """However fast it comes: others have things to do."""
        self._read_in_turn += count
        if self._read_in_turn > YIELD_BYTES:
            self._read_in_turn = 0
            await asyncio.sleep(0)

    async def fill(self, view: memoryview) -> int:
        """Read as much as `view` takes, waiting for all of it; return how much it was, less only at the end. Raises
        OSError."""
        self._filling, self._filled = view, 0
        try:
            if not self._fill_some():
                self._read_in_turn = 0
                await self._wait_readable()  # for all of it, see _on_readable
                if self._filled < len(view) and self._error is not None:
                    raise self._error
        finally:
            self._filling = None
        await self._let_others(self._filled)
        return self._filled

    def _fill_some(self) -> bool:
        """Read what is there of what `fill` wants; return whether it is to wait no longer."""
        assert self._filling is not None
        while self._filled < len(self._filling):
            if not (count := self._read_into(self._filling[self._filled :])):
                return count is not None
            self._filled += count
        return True

    def _read_into(self, view: memoryview) -> int | None:
        """Return how much could be read at once, 0 for the end, None for "wait"."""
        if self._error is not None or self._sock.fileno() < 0:
            raise self._error or _ended()
        read: Callable[[int, memoryview], int] = self._sock.read  # type: ignore[assignment]  # with a buffer it counts
        count, size = 0, len(view)
        try:
            while count < size:  # once per record of 16 KiB: what is in here is most of what reading costs
                if not (got := read(size - count, view[count:])):
                    return count
                count += got
        except ssl.SSLWantReadError:
            return count or None
        except ssl.SSLWantWriteError:  # it answers a key update; rare enough to wait for the other side to speak
            return count or None
        except ssl.SSLZeroReturnError:
            return count
        except OSError:
            if not count:
                raise
        return count

    def write(self, *parts: bytes | memoryview) -> None:
        """Send, now or when the peer takes it; errors come out of `read`, `drain` and `flush`. What is in `parts`
        must stay as it is until it has been sent, see `flush`."""
        for data in parts:
            view = memoryview(data)
            for begin in range(0, len(view), PLAIN_BYTES):
                self._unsent.append(view[begin : begin + PLAIN_BYTES])
            self._unsent_bytes += len(view)
        if self._sending:
            return
        if self._unsent_bytes > SMALL_BYTES:
            self._send()
        elif self._soon is None:
            self._soon = self._loop.call_soon(self._send)

    def _send(self) -> None:
        if self._soon is not None:
            self._soon.cancel()
            self._soon = None
        if len(self._unsent) > 1 and self._unsent_bytes <= SMALL_BYTES and not self._sending:
            self._unsent = deque([memoryview(b"".join(self._unsent))])
        try:
            while self._unsent:
                count = self._sock.send(self._unsent[0])
                self._unsent_bytes -= count
                self._sent_bytes += count
                self._sent_in_turn += count
                if count < len(self._unsent[0]):
                    self._unsent[0] = self._unsent[0][count:]
                else:
                    self._unsent.popleft()
        except (ssl.SSLWantWriteError, ssl.SSLWantReadError):
            if not self._sending:
                self._sending = True
                self._loop.add_writer(self._descriptor, self._send)
        except OSError as exc:
            self._error = self._error or exc
            self._unsent.clear()
            self._unsent_bytes = 0
        if not self._unsent and self._sending:
            self._sending = False
            self._loop.remove_writer(self._descriptor)
        if self._unsent_bytes <= HIGH_WATER_BYTES // 2:
            _wake(self._drained)
        while self._flushes and (self._error is not None or self._flushes[0][0] <= self._sent_bytes):
            _wake(self._flushes.popleft()[1])

    async def drain(self) -> None:
        """Wait while much is unsent. Raises OSError once nothing can be sent any more."""
        if self._unsent_bytes > HIGH_WATER_BYTES:
            await self._wait_drained()
        elif self._sent_in_turn > YIELD_BYTES:
            self._sent_in_turn = 0
            await asyncio.sleep(0)
        if self._error is not None:
            raise self._error

    async def flush(self) -> None:
        """Wait until what has been written so far is sent. Raises OSError once nothing can be sent any more."""
        if self._unsent and self._error is None:
            sent: asyncio.Future[None] = self._loop.create_future()
            self._flushes.append((self.written_bytes, sent))
            await sent
        if self._error is not None:
            raise self._error

    async def _wait_drained(self) -> None:
        if self._drained is None or self._drained.done():
            self._drained = self._loop.create_future()
        await asyncio.shield(self._drained)

    @property
    def sent_bytes(self) -> int:
        """Of all that was written, so far."""
        return self._sent_bytes

    @property
    def written_bytes(self) -> int:
        return self._sent_bytes + self._unsent_bytes

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        """Say that nothing more is written; what was goes out first. `wait_closed` does the rest."""
        self._closing = True

    async def wait_closed(self) -> None:
        """Send what is unsent and TLS's end, wait for the peer's; then close. Raises OSError."""
        while self._unsent:
            await self._wait_drained()
            if self._error is not None:
                raise self._error
        with contextlib.suppress(OSError):  # "want read" for the peer's end is one
            self._sock.unwrap()
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self._sock, socket.SHUT_WR)
        # what the peer still sends is taken as it is, below TLS, and dropped: closing over it would take away from the
        # peer what it has not read of ours
        while True:
            try:
                if not socket.socket.recv_into(self._sock, self._buffer):
                    break
            except BlockingIOError:
                await self._wait_readable()
            else:
                await asyncio.sleep(0)
        self.abort()

    def abort(self) -> None:
        """Close at once. Idempotent."""
        self._closing = True
        if self._soon is not None:
            self._send()  # as far as it goes
        self._error = self._error or _ended()
        if self._sock.fileno() >= 0:
            self._loop.remove_reader(self._descriptor)
            self._loop.remove_writer(self._descriptor)
            self._sock.close()
        self._unsent.clear()
        self._unsent_bytes = 0
        _wake(self._readable)
        _wake(self._drained)
        for _, sent in self._flushes:
            _wake(sent)
        self._flushes.clear()

    async def _wait_readable(self) -> None:
        if self._sock.fileno() < 0:
            raise self._error or _ended()
        self._readable = self._loop.create_future()
        if not self._watching:
            self._watching = True
            self._loop.add_reader(self._descriptor, self._on_readable)
        await self._readable

    def _on_readable(self) -> None:
        if self._readable is None or self._readable.done():
            # nobody waits, and it would be said again and again
            self._watching = False
            self._loop.remove_reader(self._descriptor)
            return
        try:
            # a large payload comes in many parts: waking up whoever wants all of it for each would cost more than these
            if self._filling is None or self._fill_some():
                self._readable.set_result(None)
        except OSError as exc:
            self._readable.set_exception(exc)

    async def _wait_writable(self) -> None:
        writable: asyncio.Future[None] = self._loop.create_future()
        self._loop.add_writer(self._descriptor, _wake, writable)
        try:
            await writable
        finally:
            if self._sock.fileno() >= 0:
                self._loop.remove_writer(self._descriptor)


def _ended() -> OSError:
    return ConnectionAbortedError(errno.ECONNABORTED, os.strerror(errno.ECONNABORTED))


def _wake(waiting: asyncio.Future[None] | None) -> None:
    if waiting is not None and not waiting.done():
        waiting.set_result(None)
