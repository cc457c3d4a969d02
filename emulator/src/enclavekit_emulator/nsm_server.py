# SPDX-License-Identifier: Apache-2.0
"""The Unix socket that stands for /dev/nsm: frames of a u32 big-endian length and CBOR, one answer per request.

Whoever connects is inside the enclave and may be hostile: requests are capped, connections counted, and one that stops
in the middle of a frame only wastes its own thread until the time-out.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time

from enclavekit_nsm.client import LENGTH
from enclavekit_nsm.messages import MAX_REQUEST_BYTES

from enclavekit_emulator.faults import SLOW_S, Fault
from enclavekit_emulator.nsm_service import NsmService

MAX_CONNECTIONS = 64  # each costs a thread; services keep one open, tools come and go
FRAME_TIMEOUT_S = 10.0  # from a frame's first byte to its last


class NsmServer:
    """Serves one listening socket until `close`."""

    def __init__(self, listener: socket.socket, service: NsmService) -> None:
        self._listener, self._service = listener, service
        self._turn = threading.Lock()
        self._lock = threading.Lock()
        self._connections: set[socket.socket] = set()
        self._closing = False
        self._thread = threading.Thread(target=self._accept, name="nsm-accept", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening and cut every connection."""
        self._closing = True
        # close() alone leaves a blocked accept() blocked
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            for connection in self._connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        self._thread.join()

    def _accept(self) -> None:
        while not self._closing:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                if self._closing:
                    return
                time.sleep(0.1)  # out of descriptors: do not spin until there are some again
                continue
            with self._lock:
                if self._closing or len(self._connections) >= MAX_CONNECTIONS:
                    connection.close()
                    continue
                self._connections.add(connection)
            try:
                threading.Thread(target=self._serve, args=(connection,), name="nsm", daemon=True).start()
            except RuntimeError:
                # no thread to be had: this client goes without, the next may find one
                with self._lock:
                    self._connections.discard(connection)
                connection.close()

    def _serve(self, connection: socket.socket) -> None:
        try:
            with connection:
                while self._answer_one(connection):
                    pass
        except OSError:
            pass  # the client has gone; nobody is left to tell
        finally:
            with self._lock:
                self._connections.discard(connection)

    def _answer_one(self, connection: socket.socket) -> bool:
        """Answer one request; return whether there may be another."""
        connection.settimeout(None)
        first = connection.recv(1)
        if not first:
            return False
        deadline = time.monotonic() + FRAME_TIMEOUT_S
        header = first + _receive(connection, LENGTH.size - 1, deadline)
        if len(header) < LENGTH.size:
            return False
        (length,) = LENGTH.unpack(header)
        if length > MAX_REQUEST_BYTES:
            return False  # not a client of ours: there is no way back into step with it
        request = _receive(connection, length, deadline)
        if len(request) < length:
            return False
        with self._turn:
            if Fault.SLOW in self._service.faults:
                time.sleep(SLOW_S)
            response = self._service.handle(request)
        connection.settimeout(FRAME_TIMEOUT_S)
        connection.sendall(LENGTH.pack(len(response)) + response)
        return True


def _receive(connection: socket.socket, count: int, deadline: float) -> bytes:
    """Return `count` bytes, or fewer if the stream ends. Raises TimeoutError at the deadline."""
    data = bytearray()
    while len(data) < count:
        connection.settimeout(max(deadline - time.monotonic(), 0.001))
        chunk = connection.recv(count - len(data))
        if not chunk:
            break
        data += chunk
    return bytes(data)


def serve_nsm(listener: socket.socket, service: NsmService) -> NsmServer:
    """Serve `service` on a listening Unix socket in threads; the result's `close` ends it."""
    return NsmServer(listener, service)
