# SPDX-License-Identifier: Apache-2.0
"""The Unix socket by which the host reaches the guest's ports: `CONNECT <port>\\n` in, `OK <port>\\n` back, then bytes.

As Firecracker, Cloud Hypervisor and vhost-device-vsock have it; `enclavekit_core.streams` speaks the other end.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass

from enclavekit_core.peers import identify_peer

from enclavekit_emulator.vsock_device.backend import Backend

REQUEST_TIMEOUT_S = 10.0  # from connect to the guest's answer
MAX_WAITING = 256
ACCEPT_PAUSE_S = 0.5
MAX_LINE_BYTES = 32  # "CONNECT 4294967295\n" is 19
PARENT_CID = 3


def parse_request(line: bytes) -> int | None:
    """Return the port of a whole `CONNECT` line; None if it is none. Pure."""
    word, _, digits = line.removesuffix(b"\n").partition(b" ")
    if word != b"CONNECT" or not digits.isdigit() or not 0 < int(digits) < 2**32:
        return None
    return int(digits)


@dataclass(slots=True, eq=False)
class _Waiting:
    sock: socket.socket
    deadline: float
    line: bytes = b""
    is_asked: bool = False


class HybridPort:
    """Accepts on one listener on behalf of one guest; `expire` is to be called now and then."""

    def __init__(self, backend: Backend, listener: socket.socket, clock: Callable[[], float] = time.monotonic) -> None:
        self._backend, self._listener, self._clock = backend, listener, clock
        self._waiting: set[_Waiting] = set()
        self._pause_end: float | None = None
        listener.setblocking(False)
        backend.watch(listener.fileno(), self._accept)

    @property
    def next_deadline(self) -> float | None:
        deadlines = [waiting.deadline for waiting in self._waiting]
        return min([*deadlines, self._pause_end] if self._pause_end is not None else deadlines, default=None)

    def expire(self) -> None:
        """Let go of whoever has waited too long."""
        now = self._clock()
        if self._pause_end is not None and self._pause_end <= now:
            self._pause_end = None
            self._backend.watch(self._listener.fileno(), self._accept)
        for waiting in [w for w in self._waiting if w.deadline <= now]:
            if waiting.is_asked:
                self._backend.device.abandon(waiting.sock)
            else:
                self._drop(waiting)

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError:
            # no descriptors or no memory: the listener stays readable, and asking it again at once would never end
            self._backend.unwatch(self._listener.fileno())
            self._pause_end = self._clock() + ACCEPT_PAUSE_S
            return
        if len(self._waiting) >= MAX_WAITING:
            sock.close()
            return
        sock.setblocking(False)
        waiting = _Waiting(sock, self._clock() + REQUEST_TIMEOUT_S)
        self._waiting.add(waiting)
        self._backend.watch(sock.fileno(), lambda: self._read(waiting))

    def _read(self, waiting: _Waiting) -> None:
        while not waiting.line.endswith(b"\n"):
            try:
                byte = waiting.sock.recv(1)  # what follows the line belongs to the stream
            except BlockingIOError:
                return
            except OSError:
                byte = b""
            if not byte or len(waiting.line) >= MAX_LINE_BYTES:
                self._drop(waiting)
                return
            waiting.line += byte
        port = parse_request(waiting.line)
        if port is None:
            self._drop(waiting)
            return
        self._backend.unwatch(waiting.sock.fileno())
        waiting.is_asked = True
        peer = identify_peer(waiting.sock, on_fabric=True).cid or PARENT_CID
        if not self._backend.device.ask(waiting.sock, peer, port, lambda accepted: self._on_answer(waiting, accepted)):
            self._waiting.discard(waiting)
            waiting.sock.close()

    def _on_answer(self, waiting: _Waiting, accepted: bool) -> None:
        self._waiting.discard(waiting)
        if accepted:
            with contextlib.suppress(OSError):  # its end is noticed when it is read
                waiting.sock.send(b"OK %d\n" % (parse_request(waiting.line) or 0))

    def _drop(self, waiting: _Waiting) -> None:
        self._waiting.discard(waiting)
        self._backend.unwatch(waiting.sock.fileno())
        waiting.sock.close()
