# SPDX-License-Identifier: Apache-2.0
"""HTTP in threads of its own, by Python's own server: `status`, `hash`, metrics and health.

The socket is for its owner alone, and answers everything; a TCP address gets metrics and health.
"""

from __future__ import annotations

import json
import os
import socket
import socketserver
import threading
import time
import urllib.parse
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from typing import Any

from enclavekit_core.address import Address, VsockAddress
from enclavekit_core.errors import ConfigError, EnclavekitError, InputError
from enclavekit_core.exposition import CONTENT_TYPE
from enclavekit_core.streams import Listener

from enclavekit_fs_monitor.directory_digest import NotHashedError, NotThereError

MAX_REQUESTS = 16  # at a time; a few tools and a scraper ask
REQUEST_TIMEOUT_S = 30.0
ACCEPT_PAUSE_S = 1.0  # after a connection that could not be taken: no descriptor is free, and may be again

Answer = Callable[[dict[str, str]], object]
"""Takes the query; returns what becomes JSON, or text."""


class _Handler(BaseHTTPRequestHandler):
    """One request; HTTP/1.0, so that a connection ends with it."""

    server: ControlServer
    timeout = REQUEST_TIMEOUT_S

    def do_GET(self) -> None:
        url = urllib.parse.urlsplit(self.path)
        answer = self.server.routes.get(url.path.rstrip("/"))
        if answer is None:
            self._reply(404, {"error": "cannot serve: no such route"})
            return
        query = dict(urllib.parse.parse_qsl(url.query, errors="surrogateescape"))
        try:
            body = answer(query)
        except InputError as exc:
            self._reply(404, {"error": str(exc), "reason": exc.reason, "may_come": isinstance(exc, NotThereError)})
        except NotHashedError as exc:
            self._reply(409, {"error": str(exc)})
        except (EnclavekitError, TimeoutError) as exc:
            self._reply(503, {"error": str(exc) or "timed out"})
        else:
            self._reply(200, body)

    def _reply(self, status: int, body: object) -> None:
        is_text = isinstance(body, str)
        data = (body if isinstance(body, str) else json.dumps(body) + "\n").encode("utf-8")
        self.send_response(status)
        self.send_header("Content-Type", CONTENT_TYPE if is_text else "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def address_string(self) -> str:
        return "local"  # of a Unix socket there is no address

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are not logged."""


class ControlServer(socketserver.ThreadingMixIn, socketserver.BaseServer):
    """Serves `routes` until `close`."""

    daemon_threads = True

    def __init__(self, address: Address, routes: dict[str, Answer]) -> None:
        """Raises TransportError."""
        if isinstance(address, VsockAddress):
            raise ConfigError(f"address {address}", "", "put pf-proxy before it: it has to be tcp:// or unix://")
        super().__init__(str(address), _Handler)
        self.routes = routes
        self._listener = Listener(address)
        self._slots = threading.BoundedSemaphore(MAX_REQUESTS)
        self._closing = False
        self._thread = threading.Thread(target=self._accept_until_closed, name="control", daemon=True)
        self._thread.start()

    @property
    def address(self) -> Address:
        return self._listener.bound_address

    def _accept_until_closed(self) -> None:
        """In place of socketserver's own loop, which wakes up twice a second to see whether it shall stop."""
        while not self._closing:
            try:
                sock, _ = self._listener.socket.accept()
            except OSError:
                if not self._closing:
                    time.sleep(ACCEPT_PAUSE_S)
                continue
            self.process_request(sock, ("local", 0))

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._slots.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._slots.release()

    def shutdown_request(self, request: Any) -> None:
        request.close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Whoever asked has left."""

    def close(self) -> None:
        self._closing = True
        self._listener.socket.shutdown(socket.SHUT_RDWR)  # ends an accept that waits
        self._thread.join()
        self._listener.close()


def path_in(query: dict[str, str]) -> bytes:
    """Return the path that a query asks about. Raises InputError."""
    path = os.fsencode(query.get("path", ""))
    if not path.startswith(b"/") or b"\0" in path:
        raise InputError("find", repr(path)[:100], "it is no absolute path")
    return os.path.normpath(b"/" + path.lstrip(b"/"))
