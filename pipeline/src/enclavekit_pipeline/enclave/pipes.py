# SPDX-License-Identifier: Apache-2.0
"""Our ends of a command's pipes, or of its terminal, on the event loop: non-blocking, so that "all that is in there
now" can be known.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
from collections.abc import Callable

PIPE_BYTES = 256 * 1024  # four times the kernel's default: fewer wake-ups for each megabyte
F_SETPIPE_SZ = 1031  # fcntl(2)


class _Pipe:
    """A descriptor that is owned here and waited for by at most one task."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._waiter: asyncio.Future[None] | None = None
        os.set_blocking(descriptor, False)
        with contextlib.suppress(OSError):  # an unprivileged user may have used up his share of pipe memory
            fcntl.fcntl(descriptor, F_SETPIPE_SZ, PIPE_BYTES)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _wait(self, add: Callable[..., None], remove: Callable[[int], bool]) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        add(self._descriptor, self._wake)
        try:
            await self._waiter
        finally:
            remove(self._descriptor)
            self._waiter = None

    def close(self) -> None:
        """Idempotent. Nobody may be waiting any more."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class OutputPipe(_Pipe):
    """What a command writes."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor)
        self._left: int | None = None

    def finish(self) -> None:
        """Say that the command has ended: what is in the pipe now is the rest, whoever else still holds it."""
        self._left = PIPE_BYTES
        self._wake()

    async def read(self) -> bytes:
        """Return what is there, waiting for it if need be; b"" at the end."""
        loop = asyncio.get_running_loop()
        while self._left is None or self._left > 0:
            try:
                data = os.read(self._descriptor, PIPE_BYTES)
            except BlockingIOError:
                if self._left is not None:
                    break
                await self._wait(loop.add_reader, loop.remove_reader)
                continue
            except OSError as exc:
                if exc.errno != errno.EIO:  # a terminal's way to say that nobody holds its other end any more
                    raise
                break
            if self._left is not None:
                self._left -= len(data)
            return data
        return b""


class InputPipe(_Pipe):
    """What a command reads."""

    async def write(self, data: bytes) -> None:
        """Write all of it. Raises BrokenPipeError once the command reads no more."""
        loop, view = asyncio.get_running_loop(), memoryview(data)
        while view:
            try:
                view = view[os.write(self._descriptor, view) :]
            except BlockingIOError:
                await self._wait(loop.add_writer, loop.remove_writer)
