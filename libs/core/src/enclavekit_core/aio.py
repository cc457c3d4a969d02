# SPDX-License-Identifier: Apache-2.0
"""The streams of `streams` for asyncio, TLS on top where asked.

asyncio's own loop takes AF_VSOCK sockets. uvloop 0.23 starts a server on one as well, but our services that listen on
vsock stay on asyncio's loop.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from enclavekit_core import streams
from enclavekit_core.address import Address
from enclavekit_core.errors import TransportError
from enclavekit_core.peers import Peer, identify_peer

STREAM_LIMIT_BYTES = 256 * 1024  # vsock is fastest with 64..256 KiB at a time
TLS_HANDSHAKE_TIMEOUT_S = 20.0

CANCEL_AGAIN_S = 0.1

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter, Peer], Awaitable[None]]


async def end_tasks(tasks: Iterable[asyncio.Future[Any]]) -> None:
    """Cancel tasks until they have ended; how they ended is not asked.

    Once is not enough: `asyncio.wait_for` before Python 3.12 loses a cancellation that comes together with its result.
    """
    tasks = list(tasks)
    unended = {task for task in tasks if not task.done()}
    while unended:
        for task in unended:
            task.cancel()
        _, unended = await asyncio.wait(unended, timeout=CANCEL_AGAIN_S)
    for task in tasks:
        if not task.cancelled():
            task.exception()  # seen, so that nobody complains that it was not


async def open_stream(
    address: Address,
    *,
    tls: ssl.SSLContext | None = None,
    server_hostname: str = "enclave",
    timeout_s: float = streams.DEFAULT_CONNECT_TIMEOUT_S,
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect and return a reader and a writer. Raises TransportError."""
    sock = await asyncio.to_thread(streams.connect, address, timeout_s)
    sock.setblocking(False)
    try:
        return await asyncio.open_connection(
            sock=sock,
            ssl=tls,
            server_hostname=server_hostname if tls else None,
            ssl_handshake_timeout=TLS_HANDSHAKE_TIMEOUT_S if tls else None,
            limit=STREAM_LIMIT_BYTES,
        )
    except (OSError, ssl.SSLError) as exc:
        sock.close()
        raise TransportError("connect to", address, exc) from exc


async def start_server(
    handler: Handler,
    listener: streams.Listener,
    *,
    tls: ssl.SSLContext | None = None,
) -> asyncio.Server:
    """Serve `listener`, calling `handler(reader, writer, peer)` for each connection; the caller closes both."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        sock = writer.get_extra_info("socket")
        # asyncio wraps the socket; the calls that identify a peer are the same on the wrapper
        try:
            peer = identify_peer(sock, on_fabric=listener.on_fabric)
        except OSError:
            writer.close()
            return
        await handler(reader, writer, peer)

    listener.socket.setblocking(False)
    return await asyncio.start_server(
        serve,
        sock=listener.socket,
        ssl=tls,
        ssl_handshake_timeout=TLS_HANDSHAKE_TIMEOUT_S if tls else None,
        limit=STREAM_LIMIT_BYTES,
    )
