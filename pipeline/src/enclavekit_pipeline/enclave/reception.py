# SPDX-License-Identifier: Apache-2.0
"""The door: accepts connections, ends TLS, and bounds how many strangers are in it at once.

Evidence costs an NSM call, and nobody has shown who he is yet. When the door is full, whoever has stood in it longest
is turned away: a caller that means it is through in a fraction of a second, one that stalls is first to go.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Awaitable, Callable

from enclavekit_core.peers import Peer, identify_peer
from enclavekit_core.streams import Listener

from enclavekit_pipeline.channel.mux import Connection
from enclavekit_pipeline.channel.tls_socket import TlsSocket
from enclavekit_pipeline.wire.frames import ENCLAVE_STREAMS

MAX_STRANGERS = 32  # connections without a proven caller; each holds a TLS state and up to 320 KiB of buffers
HANDSHAKE_TIMEOUT_S = 20.0  # TLS and ours together; a busy NSM may take seconds
ACCEPT_PAUSE_S = 0.1  # out of descriptors: do not spin until there are some again

Handler = Callable[[Connection, Peer, Callable[[], None]], Awaitable[None]]


class Reception:
    """Hands each connection to `handle(connection, peer, let_in)`, which calls `let_in` once it knows the caller."""

    def __init__(self, listener: Listener, context: ssl.SSLContext, handle: Handler) -> None:
        self._listener, self._context, self._handle = listener, context, handle
        self._strangers: dict[asyncio.Task[None], None] = {}  # in order of arrival
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Accept until cancelled; then end every connection."""
        loop = asyncio.get_running_loop()
        self._listener.socket.setblocking(False)
        try:
            while True:
                try:
                    sock, _ = await loop.sock_accept(self._listener.socket)
                except OSError:
                    await asyncio.sleep(ACCEPT_PAUSE_S)
                    continue
                if len(self._strangers) >= MAX_STRANGERS:
                    next(iter(self._strangers)).cancel()
                    del self._strangers[next(iter(self._strangers))]
                task = asyncio.create_task(self._receive(sock))
                self._tasks.add(task)
                self._strangers[task] = None
                task.add_done_callback(self._forget)
                await asyncio.sleep(0)  # a whole backlog is accepted without waiting: let those that were cut off go
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._strangers.pop(task, None)

    async def _receive(self, sock: socket.socket) -> None:
        task = asyncio.current_task()
        assert task is not None
        loop = asyncio.get_running_loop()
        deadline = loop.time() + HANDSHAKE_TIMEOUT_S
        try:
            peer = identify_peer(sock, on_fabric=self._listener.on_fabric)
            async with asyncio.timeout_at(deadline):
                wire = await TlsSocket.accept(sock, self._context)
        except (OSError, TimeoutError):
            sock.close()  # no TLS, or gone again: nobody to tell
            return
        connection = Connection(wire, peer.text, opens=ENCLAVE_STREAMS)
        in_time = asyncio.timeout_at(deadline)

        def let_in() -> None:
            self._strangers.pop(task, None)
            in_time.reschedule(None)

        try:
            with contextlib.suppress(TimeoutError):
                async with in_time:
                    await self._handle(connection, peer, let_in)
        except asyncio.CancelledError:
            connection.abort()
            raise
        await connection.close()
