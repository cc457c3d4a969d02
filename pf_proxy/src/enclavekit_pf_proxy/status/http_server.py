# SPDX-License-Identifier: Apache-2.0
"""Answers GETs of /status, /metrics and /health on the loop; nobody who asks slowly holds up anybody."""

from __future__ import annotations

import select
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING
from urllib.parse import parse_qs

import msgspec
from enclavekit_core.address import Address, UnixAddress
from enclavekit_core.errors import EnclavekitError, RemoteProtocolError
from enclavekit_core.exposition import CONTENT_TYPE
from enclavekit_core.http_get import decode_get, encode_response
from enclavekit_core.streams import Listener

from enclavekit_pf_proxy.status.metrics import render_metrics
from enclavekit_pf_proxy.status.model import Status

if TYPE_CHECKING:
    from enclavekit_pf_proxy.loop import Loop

MAX_EXCHANGES = 16  # at a time; a few tools and a scraper ask
EXCHANGE_S = 10.0
READ_BYTES = 4096
PAUSE_S = 1.0  # after a connection that could not be taken: no descriptor is free, and may be again

Ask = Callable[[bool, Callable[[Status], None]], None]
"""ask(with_connections, answer): `answer` is called once, at once or later."""


class StatusServer:
    """One listening socket. A task of the loop. The Unix socket is its owner's alone; TCP names no connection."""

    def __init__(self, loop: Loop, address: Address, ask: Ask) -> None:
        """Raises TransportError."""
        self.loop, self._ask, self.address = loop, ask, address
        self._listener = Listener(address, mode=0o600)
        self._listener.socket.setblocking(False)
        self.exchanges: set[Exchange] = set()
        self.lists_connections = isinstance(address, UnixAddress)
        self._watch()

    @property
    def bound_address(self) -> Address:
        return self._listener.bound_address

    def notice(self, index: int, mask: int) -> None:
        pass  # `run` follows

    def run(self, now: float) -> bool:
        try:
            sock, _ = self._listener.accept()
        except BlockingIOError:
            return False
        except (OSError, EnclavekitError):
            self.loop.forget(self._listener.socket.fileno())
            self.loop.timers.set(self, now + PAUSE_S)
            return False
        sock.setblocking(False)
        if len(self.exchanges) >= MAX_EXCHANGES:
            sock.close()
            return False
        self.exchanges.add(Exchange(self, sock, now))
        return False

    def expire(self, now: float) -> float | None:
        self._watch()
        return None

    def ask(self, with_connections: bool, answer: Callable[[Status], None]) -> None:
        self._ask(with_connections and self.lists_connections, answer)

    def close(self) -> None:
        for exchange in list(self.exchanges):
            exchange.close()
        self.loop.drop(self)
        self.loop.forget(self._listener.socket.fileno())
        self._listener.close()

    def give_up(self) -> None:
        """In a forked child: close its copies, and nothing that the parent sees."""
        for exchange in self.exchanges:
            exchange.sock.close()
        self._listener.leave_file()
        self._listener.close()

    def _watch(self) -> None:
        self.loop.watch(self._listener.socket.fileno(), self, 0, select.EPOLLIN)


class Exchange:
    """One request and its answer. A task of the loop."""

    def __init__(self, server: StatusServer, sock: socket.socket, now: float) -> None:
        self._server, self.sock = server, sock
        self._request = b""
        self._response = b""
        self._asked = False
        self._open = True
        server.loop.watch(sock.fileno(), self, 0, select.EPOLLIN)
        self._deadline = now + EXCHANGE_S
        server.loop.timers.set(self, self._deadline)

    def notice(self, index: int, mask: int) -> None:
        pass  # `run` follows

    def run(self, now: float) -> bool:
        if self._response:
            self._send()
        elif not self._asked:
            self._read()
        return False

    def expire(self, now: float) -> float | None:
        self.close()
        return None

    def close(self) -> None:
        if self._open:
            self._open = False
            self._server.exchanges.discard(self)
            self._server.loop.drop(self)
            self._server.loop.forget(self.sock.fileno())
            self.sock.close()

    def _read(self) -> None:
        try:
            data = self.sock.recv(READ_BYTES)
            self._request += data
            found = decode_get(self._request) if data else None
        except BlockingIOError:
            return
        except RemoteProtocolError as exc:
            self._reply(400, {"error": str(exc)})
            return
        except OSError:
            data, found = b"", None
        if not data:
            self.close()
        elif found is not None:
            self._route(*found)

    def _route(self, path: str, query: str) -> None:
        self._asked = True
        self._server.loop.forget(self.sock.fileno())  # it has said what there is to say
        match path.rstrip("/"):
            case "/status":
                self._server.ask("connections" in parse_qs(query, keep_blank_values=True), self._reply_status)
            case "/metrics":
                self._server.ask(False, self._reply_metrics)
            case "/health":
                self._server.ask(False, self._reply_health)
            case _:
                self._reply(404, {"error": "cannot serve: no such route"})

    def _reply_status(self, status: Status) -> None:
        self._send_later(encode_response(200, msgspec.json.encode(status) + b"\n"))

    def _reply_metrics(self, status: Status) -> None:
        self._send_later(encode_response(200, render_metrics(status).encode(), CONTENT_TYPE))

    def _reply_health(self, status: Status) -> None:
        self._reply(200 if status.workers else 503, {"workers": status.workers})

    def _reply(self, status: int, body: dict[str, object]) -> None:
        self._send_later(encode_response(status, msgspec.json.encode(body) + b"\n"))

    def _send_later(self, response: bytes) -> None:
        if self._open:
            self._response = response
            self._server.loop.watch(self.sock.fileno(), self, 0, select.EPOLLOUT)

    def _send(self) -> None:
        try:
            self._response = self._response[self.sock.send(self._response) :]
        except BlockingIOError:
            return
        except OSError:
            self._response = b""
        if not self._response:
            self.close()
