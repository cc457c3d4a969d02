# SPDX-License-Identifier: Apache-2.0
"""What an enclave says to its parent by itself: the heartbeat on port 9000, the end of its app on port 9002.

The enclave is hostile: each connection has a deadline, each message a size, and there are few connections at a time.
Source: nitro-cli (heartbeat: one byte 0xB7, echoed); enclavekit_core.exit_report.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Awaitable, Callable

from enclavekit_core.errors import RemoteProtocolError
from enclavekit_core.exit_report import MAX_REPORT_BYTES, ExitReport, parse_exit_report

HEARTBEAT_PORT = 9000
EXIT_REPORT_PORT = 9002
NSM_PORT = 9004  # of virtual machines: what /dev/nsm is to the others; the boot parameter names it
HEARTBEAT = b"\xb7"
MAX_CONNECTIONS = 4  # an honest enclave makes one
CONNECTION_TIMEOUT_S = 10.0
BACKLOG = 4


def listen_unix(
    directory: str, name: str, mode: int, owner: tuple[int, int] | None = None, backlog: int = BACKLOG
) -> socket.socket:
    """Return a socket listening at `directory/name`, which must not exist; paths may be of any length.

    Raises: OSError.
    """
    handle = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        sock.bind(f"/proc/self/fd/{handle}/{name}")
        if owner is not None:
            os.chown(name, *owner, dir_fd=handle, follow_symlinks=False)
        os.chmod(name, mode, dir_fd=handle)
        sock.listen(backlog)
    except BaseException:
        sock.close()
        raise
    finally:
        os.close(handle)
    return sock


class PortServer:
    """Accepts on one of the parent's ports and runs a handler per connection, within the limits of this module."""

    def __init__(self, handle: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]) -> None:
        self._handle = handle
        self._open = 0
        self._server: asyncio.Server | None = None

    async def start(self, listener: socket.socket) -> None:
        self._server = await asyncio.start_unix_server(self._serve, sock=listener, limit=MAX_REPORT_BYTES + 1)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if self._open >= MAX_CONNECTIONS:
                return
            self._open += 1
            try:
                await asyncio.wait_for(self._handle(reader, writer), CONNECTION_TIMEOUT_S)
            finally:
                self._open -= 1
        except (OSError, ValueError, asyncio.IncompleteReadError, TimeoutError, RemoteProtocolError):
            pass  # what the enclave did wrong on its own connection is that connection's end, and nothing else
        finally:
            writer.close()

    def close(self) -> None:
        if self._server is not None:
            with contextlib.suppress(OSError):
                self._server.close()
            self._server = None


async def receive_heartbeat(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
    """Return the first byte, echoed if it is the heartbeat."""
    byte = await reader.readexactly(1)
    if byte == HEARTBEAT:
        writer.write(byte)
        await writer.drain()
    return byte


async def receive_exit_report(reader: asyncio.StreamReader) -> ExitReport:
    """Return the report. Raises RemoteProtocolError, or ValueError if the line is longer than the stream's limit."""
    return parse_exit_report(await reader.readline())
