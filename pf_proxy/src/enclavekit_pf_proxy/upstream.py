# SPDX-License-Identifier: Apache-2.0
"""The far end of one connection until it is relayed: dials it, hears how that went, asks it where there is a question.

Each method does what a step of the `Handshake` says and returns the next one; None: an event or a thread will tell.
"""

from __future__ import annotations

import errno
import os
import select
import socket
from typing import TYPE_CHECKING, Protocol

from enclavekit_core.errors import TransportError, describe_cause

from enclavekit_pf_proxy.announcement import NO_ENDS
from enclavekit_pf_proxy.dialer import Waiting, status_of
from enclavekit_pf_proxy.handshake import Ask, Handshake, Refuse, Step
from enclavekit_pf_proxy.loop import Task
from enclavekit_pf_proxy.service import Header, Mode, Service
from enclavekit_pf_proxy.sockets import close_socket, prepare_socket, read_ends
from enclavekit_pf_proxy.wire.request import Status

if TYPE_CHECKING:
    from enclavekit_pf_proxy.server import Server

READABLE = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET
BOTH = READABLE | select.EPOLLOUT
INDEX = 1  # of its socket; the client's is 0
THREAD_GRACE_S = 1.0  # a thread's own timeout says more than ours


class Caller(Task, Waiting, Protocol):
    """Whose upstream it is: gets the socket's events and hears from threads."""


class Upstream:
    """Owns the socket, once there is one, until `release` or `close`."""

    __slots__ = ("_caller", "_client", "_server", "_service", "patience_s", "sock")

    def __init__(self, caller: Caller, client: socket.socket, server: Server, service: Service) -> None:
        """`client`: the near end, of whom the far one may be told."""
        self._caller, self._client, self._server, self._service = caller, client, server, service
        self.sock: socket.socket | None = None
        self.patience_s = 0.0
        """How long what is under way may take from its beginning."""

    def dial(self, handshake: Handshake) -> Step | None:
        """Connect, or begin to."""
        assert handshake.target is not None
        rules = self._service.destinations if self._service.mode is Mode.VSOCK_TO_IP_TRANSPARENT else None
        self.patience_s = timeout_s = self._service.limits.connect_timeout_s
        dialer = self._server.dialer
        try:
            begun = dialer.begin(handshake.target, rules, handshake.protocol)
            if begun is None:
                self.patience_s += THREAD_GRACE_S
                dialer.start(self._caller, handshake.target, timeout_s, rules, handshake.protocol)
                return None
        except TransportError as exc:
            return handshake.not_connected(str(exc), status_of(exc))
        except RuntimeError as exc:
            return handshake.not_connected(str(exc), Status.BUSY)
        self.sock = begun.sock
        if begun.connected:
            return self._connected(handshake)
        self._server.loop.watch(begun.sock.fileno(), self._caller, INDEX, BOTH)
        return None

    def finish(self, handshake: Handshake) -> Step | None:
        """The socket has an event: see whether it is connected."""
        if self.sock is None:
            return None  # a thread is at it
        code = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if not code:
            try:
                self.sock.getpeername()
            except OSError as exc:
                if exc.errno == errno.ENOTCONN:
                    return None  # an event from before it was decided
                code = exc.errno or errno.EIO
        if code:
            error = TransportError("connect to", handshake.target, OSError(code, os.strerror(code)))
            return handshake.not_connected(str(error), status_of(error))
        return self._connected(handshake)

    def take(self, sock: socket.socket | None, error: TransportError | None, handshake: Handshake) -> Step:
        """A thread has connected, or failed to."""
        if sock is None:
            assert error is not None
            return handshake.not_connected(str(error), status_of(error))
        self.sock = sock
        return self._connected(handshake)

    def ask(self, step: Ask, handshake: Handshake) -> Refuse | None:
        """Send the question; `read_reply` when there is something to read."""
        assert self.sock is not None
        try:
            sent = self.sock.send(step.message)
        except OSError as exc:
            return Refuse(f"cannot ask {handshake.target}: {describe_cause(exc)}", Status.FAILED)
        if sent < len(step.message):  # a fresh socket has room for kilobytes
            return Refuse(f"cannot ask {handshake.target}: it takes nothing", Status.FAILED)
        self._server.loop.watch(self.sock.fileno(), self._caller, INDEX, READABLE)
        self.patience_s = step.timeout_s
        return None

    def read_reply(self, handshake: Handshake) -> Step | None:
        assert self.sock is not None
        step = None
        while step is None:
            try:
                step = handshake.upstream_sent(self.sock.recv(handshake.wanted))
            except BlockingIOError:
                return None
            except OSError as exc:
                step = handshake.upstream_failed(describe_cause(exc))
        return step

    def redial(self, handshake: Handshake) -> Step | None:
        """Begin again, for one that knows the first header only."""
        assert handshake.target is not None
        self._server.remember_v1(handshake.target)
        self.close(reset=False)
        return self.dial(handshake)

    def release(self) -> socket.socket:
        """Return the socket, which is the caller's from now on."""
        sock, self.sock = self.sock, None
        assert sock is not None
        return sock

    def close(self, *, reset: bool) -> None:
        if self.sock is not None:
            self._server.loop.release(self.sock.fileno())
            close_socket(self.sock, reset=reset)
            self.sock = None

    def _connected(self, handshake: Handshake) -> Step:
        assert self.sock is not None and handshake.target is not None
        prepare_socket(self.sock, self._service.limits.keepalive_s)
        if not handshake.tells_ends:
            return handshake.connected(Header.AUTO, NO_ENDS)
        header = self._server.header_for(handshake.target, self._service.header)
        return handshake.connected(header, read_ends(self._client))
