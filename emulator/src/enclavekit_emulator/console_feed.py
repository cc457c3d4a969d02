# SPDX-License-Identifier: Apache-2.0
"""What an enclave's console says, read as it comes: kept, written to a file in debug mode, and shown to readers."""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import BinaryIO

from enclavekit_emulator.console import ConsoleBuffer

READ_BYTES = 64 * 1024
MAX_DRAIN_BYTES = 1024 * 1024  # at the end; a pipe holds 64 KiB unless the enclave enlarged it
MAX_FILE_BYTES = 16 * 1024 * 1024  # then it is started anew
MAX_READER_BACKLOG = 64  # chunks; a reader that lags by more is dropped, the enclave never waits for one


class ConsoleFeed:
    """The console's descriptor and all who read what comes out of it."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._buffer = ConsoleBuffer()
        self._file: BinaryIO | None = None
        self._discarding = False
        self._readers: set[asyncio.Queue[bytes]] = set()

    def write_to(self, path: str) -> None:
        """Write what comes to the file too. Raises OSError."""
        self._file = open(path, "wb", buffering=0)  # noqa: SIM115 - closed with the rest

    def discard(self) -> None:
        """Forget what has come, and what comes is read and thrown away."""
        self._buffer = ConsoleBuffer(0)
        self._discarding = True

    def last_lines(self, count: int) -> tuple[str, ...]:
        """Return the last lines of what was kept."""
        return self._buffer.last_lines(count)

    def read(self) -> bytes:
        """Take what there is; nothing if there is nothing."""
        try:
            chunk = os.read(self._fd, READ_BYTES)
        except BlockingIOError:
            return b""
        if self._discarding:
            return chunk
        self._buffer.append(chunk)
        if self._file is not None:
            if self._file.tell() + len(chunk) > MAX_FILE_BYTES:
                self._file.seek(0)
                self._file.truncate()
            with contextlib.suppress(OSError):  # a full disk costs the file, not the enclave
                self._file.write(chunk)
        for queue in list(self._readers):
            try:
                queue.put_nowait(chunk)
            except asyncio.QueueFull:
                self._readers.discard(queue)
        return chunk

    def drain(self) -> None:
        """Take all there is, within reason: PID 1 has ended, a child of it may still write."""
        seen = 0
        while seen < MAX_DRAIN_BYTES and (chunk := self.read()):
            seen += len(chunk)

    async def stream_to(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Send what was kept, and what comes, until the console ends or the other side closes."""
        queue: asyncio.Queue[bytes] = asyncio.Queue(MAX_READER_BACKLOG)
        writer.write(b'{"console": true}\n' + self._buffer.read())
        self._readers.add(queue)
        gone = asyncio.ensure_future(reader.read(1))  # the reader sends nothing more: any news is its end
        try:
            while queue in self._readers and not gone.done():
                following = asyncio.ensure_future(queue.get())
                await asyncio.wait({following, gone}, return_when=asyncio.FIRST_COMPLETED)
                if not following.done() or not following.result():
                    following.cancel()
                    break
                writer.write(following.result())
                await writer.drain()
        except OSError:
            pass
        finally:
            gone.cancel()
            self._readers.discard(queue)

    def end(self) -> None:
        """Let the readers go once they have what was said."""
        for queue in self._readers:
            with contextlib.suppress(asyncio.QueueFull):
                queue.put_nowait(b"")

    def close_file(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
