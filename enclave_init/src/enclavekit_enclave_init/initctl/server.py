# SPDX-License-Identifier: Apache-2.0
"""The control socket: accepts connections, asks the kernel who is there, hands requests to the service."""

from __future__ import annotations

import os
import socket
import struct
import traceback

from enclavekit_core.address import UnixAddress
from enclavekit_core.errors import EnclavekitError, InputError, TransportError, describe_cause
from enclavekit_core.http_get import encode_response, parse_request_line
from enclavekit_core.streams import Listener

from enclavekit_enclave_init.initctl.access import Caller, ControlConfig, explain_refusal, permissions_of
from enclavekit_enclave_init.initctl.connection import Connection
from enclavekit_enclave_init.initctl.framing import Framing
from enclavekit_enclave_init.initctl.requests import STATUS, decode_request
from enclavekit_enclave_init.initctl.service import ControlService
from enclavekit_enclave_init.logs.journal import Journal
from enclavekit_enclave_init.runtime.reactor import READ, Reactor

MAX_CONNECTIONS = 64  # half of them may follow logs; each costs PID 1 up to half a MiB
BACKLOG = 16
ACCEPT_PAUSE_S = 0.1  # out of descriptors: not again at once
UCRED = struct.Struct("iII")  # pid, uid, gid: struct ucred, unix(7)
QUIET = frozenset({"status", "logs"})  # permissions whose use is not worth a line of PID 1's log


class ControlServer:
    def __init__(self, reactor: Reactor, service: ControlService, config: ControlConfig, journal: Journal) -> None:
        self._reactor, self._service, self._config, self._journal = reactor, service, config, journal
        self._connections: set[Connection] = set()
        self._listener: Listener | None = None

    def listen(self) -> None:
        """Listen on the socket. Raises TransportError."""
        try:
            os.makedirs(os.path.dirname(self._config.socket), exist_ok=True)
        except OSError as exc:
            raise TransportError("listen on", self._config.socket, exc) from exc
        self._listener = Listener(UnixAddress(self._config.socket), backlog=BACKLOG, mode=self._config.socket_mode)
        self._listener.socket.setblocking(False)
        self._reactor.watch(self._listener.socket.fileno(), READ, self._accept)

    def close(self) -> None:
        for connection in list(self._connections):
            connection.close()
        if self._listener is not None:
            self._reactor.unwatch(self._listener.socket.fileno())
            self._listener.close()
            self._listener = None

    def _accept(self) -> None:
        assert self._listener is not None
        fd = self._listener.socket.fileno()
        try:
            sock, _ = self._listener.socket.accept()
        except BlockingIOError:
            return
        except OSError as exc:
            self._journal(f"cannot accept a control connection: {describe_cause(exc)}")
            self._reactor.unwatch(fd)
            self._reactor.call_later(ACCEPT_PAUSE_S, self._resume)
            return
        try:
            caller = Caller(*UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, UCRED.size)))
        except OSError:
            sock.close()
            return
        if len(self._connections) >= MAX_CONNECTIONS or not permissions_of(self._config, caller):
            # who may do nothing takes no place from those who may
            sock.close()
            return
        self._connections.add(Connection(sock, caller, self._reactor, self._on_request, self._connections.discard))

    def _resume(self) -> None:
        if self._listener is not None:
            self._reactor.watch(self._listener.socket.fileno(), READ, self._accept)

    def _on_request(self, connection: Connection, data: bytes) -> None:
        if connection.framing is Framing.HTTP:
            self._on_get(connection, data)
            return
        try:
            request = decode_request(data)
            if reason := explain_refusal(self._config, connection.caller, request):
                self._journal(f"refused {request.describe()}: {reason} ({connection.caller})")
                raise InputError("carry out", request.verb, reason)
            if request.permission not in QUIET:
                asked = f"{request.client} by way of " if request.client else ""
                self._journal(f"{request.describe()} (asked by {asked}{connection.caller})")
            self._service.carry_out(request, connection)
        except EnclavekitError as exc:
            connection.answer("Error", {"message": str(exc)})
            connection.finish()
        except Exception as exc:
            # a bug in answering must not be the end of an enclave
            self._journal("".join(traceback.format_exception(exc)).rstrip())
            connection.answer("Error", {"message": "cannot answer: it failed inside, see the log of enclave-init"})
            connection.finish()

    def _on_get(self, connection: Connection, line: bytes) -> None:
        asked = parse_request_line(line)
        if asked is None:
            connection.send(encode_response(400, b'{"error":"only GET is known"}\n'))
        elif STATUS not in permissions_of(self._config, connection.caller):
            connection.send(encode_response(403, b'{"error":"not allowed"}\n'))
        else:
            connection.send(self._service.answer_get(asked[0]))
        connection.finish()
