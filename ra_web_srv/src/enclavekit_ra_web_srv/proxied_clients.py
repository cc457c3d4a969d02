# SPDX-License-Identifier: Apache-2.0
"""Connections that a proxy brings, which says by the PROXY protocol (version 2) whose they are.

On this listener the header is mandatory and comes before TLS: a connection without one, or from an address that is not
that of a proxy, is closed unanswered. On the other listener it is no TLS, and closes the connection there. So nobody
who is not configured to has a say in who a client is.

What the proxy says is used for limits only. The one in front of an enclave is the host's, which may say anything: it
can spread its requests over made-up clients, as it can over connections, and then meets the limits of the whole.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable, Hashable, Sequence

from enclavekit_core.address import Address
from enclavekit_core.aio import end_tasks
from enclavekit_core.errors import RemoteProtocolError
from enclavekit_core.logs import get_logger
from enclavekit_core.proxy_protocol import HEAD, decode_proxied, size_of_v2
from enclavekit_core.streams import Listener

from enclavekit_ra_web_srv.networks import Network, client_of_host, is_in

HEADER_TIMEOUT_S = 5.0  # a proxy sends it before anything else
TLS_TIMEOUT_S = 20.0
MAX_OPENING = 512  # connections whose header or handshake is awaited; further ones wait in the backlog
PAUSE_S = 0.25  # when the kernel has no descriptors left

log = get_logger("ra-web-srv")


class ProxiedClients:
    """Accepts on one socket, and keeps account of who is behind each connection while it lasts."""

    def __init__(
        self,
        listener: Listener,
        proxies: Sequence[Network],
        tls: ssl.SSLContext,
        make_handler: Callable[[], asyncio.Protocol],
        clients: dict[object, Hashable],
    ) -> None:
        """Args:
        listener: its socket does not block.
        make_handler: makes the protocol of one connection, once its header is read.
        clients: is kept to be handler -> who is behind its connection; without those that the proxy says nothing of.
        """
        self._listener, self._proxies, self._tls = listener, tuple(proxies), tls
        self._make_handler, self._clients = make_handler, clients
        self._opening: set[asyncio.Task[None]] = set()

    @property
    def address(self) -> Address:
        return self._listener.bound_address

    async def run(self) -> None:
        """Accept until cancelled."""
        loop = asyncio.get_running_loop()
        room = asyncio.Semaphore(MAX_OPENING)
        try:
            while True:
                await room.acquire()
                try:
                    connection, peer = await loop.sock_accept(self._listener.socket)
                except OSError as exc:
                    room.release()
                    log.warning("cannot accept", cause=str(exc))
                    await asyncio.sleep(PAUSE_S)
                    continue
                task = asyncio.ensure_future(self._open(connection, peer))
                self._opening.add(task)
                task.add_done_callback(self._opening.discard)
                task.add_done_callback(lambda _task: room.release())
        finally:
            await end_tasks(self._opening)

    async def _open(self, connection: socket.socket, peer: object) -> None:
        with contextlib.ExitStack() as stack:
            stack.callback(connection.close)
            try:
                if not self._is_proxy(peer):
                    raise RemoteProtocolError("cannot take connection: it is from no proxy of ours")
                async with asyncio.timeout(HEADER_TIMEOUT_S):
                    client = await self._read_client(connection)
                protocol = _Handler(self._make_handler(), self._clients, client)
                stack.pop_all()  # the loop closes it from here on
                await asyncio.get_running_loop().connect_accepted_socket(
                    lambda: protocol, connection, ssl=self._tls, ssl_handshake_timeout=TLS_TIMEOUT_S
                )
            except (OSError, EOFError, TimeoutError, RemoteProtocolError) as exc:
                log.info("connection ended before its first request", peer=str(peer), cause=str(exc))

    def _is_proxy(self, peer: object) -> bool:
        """Whether it may say who its clients are; a Unix socket's permissions have said so already."""
        return not isinstance(peer, tuple) or is_in(peer[0], self._proxies)

    async def _read_client(self, connection: socket.socket) -> Hashable:
        """Read the header and no byte more: what follows is TLS. Raises EOFError, RemoteProtocolError."""
        head = await _read_exactly(connection, HEAD.size)
        block = head + await _read_exactly(connection, size_of_v2(head) - HEAD.size)
        decoded = decode_proxied(block)
        if decoded is None:
            raise RemoteProtocolError("cannot read PROXY header: it is incomplete")
        source = decoded[0].source
        return None if source is None else client_of_host(source.host)


class _Handler(asyncio.Protocol):
    """The protocol behind it, and its client for as long as it is connected."""

    def __init__(self, handler: asyncio.Protocol, clients: dict[object, Hashable], client: Hashable) -> None:
        self._handler, self._clients, self._client = handler, clients, client
        self.data_received = handler.data_received  # type: ignore[method-assign]  # for each piece: no call in between
        self.eof_received = handler.eof_received  # type: ignore[method-assign]
        self.pause_writing = handler.pause_writing  # type: ignore[method-assign]
        self.resume_writing = handler.resume_writing  # type: ignore[method-assign]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if self._client is not None:
            self._clients[self._handler] = self._client
        self._handler.connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._clients.pop(self._handler, None)
        self._handler.connection_lost(exc)


async def _read_exactly(connection: socket.socket, count: int) -> bytes:
    loop, received = asyncio.get_running_loop(), b""
    while len(received) < count:
        data = await loop.sock_recv(connection, count - len(received))
        if not data:
            raise EOFError("it ended within its PROXY header")
        received += data
    return received
