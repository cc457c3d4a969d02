# SPDX-License-Identifier: Apache-2.0
"""The supervisor's end of the socket to the command that started it; the other end is `front`."""

from __future__ import annotations

import asyncio
import base64
import contextlib
from typing import Any

import msgspec


class FrontLink:
    """Our end of the socket to the command that started us; it may leave at any time."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self.left = asyncio.Event()

    async def read(self) -> dict[str, Any]:
        """Return the one line that says what to do."""
        order = msgspec.json.decode(await self._reader.readline())
        assert isinstance(order, dict)
        self._watcher = asyncio.create_task(self._watch())
        return order

    async def _watch(self) -> None:
        with contextlib.suppress(OSError):
            await self._reader.read()
        self.left.set()

    def send(self, message: dict[str, Any]) -> None:
        if not self.left.is_set() and not self._writer.is_closing():
            self._writer.write(msgspec.json.encode(message) + b"\n")

    def note(self, text: str) -> None:
        self.send({"note": text})

    async def send_console(self, data: bytes) -> None:
        """Pass console bytes on; waits when the reader is slow."""
        if data:
            self.send({"console": base64.b64encode(data).decode()})
            await self.drain()

    async def drain(self) -> None:
        if not self.left.is_set():
            with contextlib.suppress(OSError):
                await self._writer.drain()

    async def close(self) -> None:
        await self.drain()
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()
