# SPDX-License-Identifier: Apache-2.0
"""Between a supervisor and its workers: a question goes one way, a status comes back.

A status is as long as it is and nobody may wait for the other to take it, so it is written to a memfd, and what goes
through the socket is its descriptor.
"""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from enclavekit_pf_proxy.status.describe import describe
from enclavekit_pf_proxy.status.model import Status

if TYPE_CHECKING:
    from enclavekit_pf_proxy.loop import Loop
    from enclavekit_pf_proxy.server import Server

PLAIN, LISTED = b"s", b"c"  # the question: without connections, with them; followed by its number
MAX_STATUS_BYTES = 16 * 1024 * 1024
MAX_QUESTION_BYTES = 32


def make_channel() -> tuple[socket.socket, socket.socket]:
    """Return both ends."""
    kind = socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
    return socket.socketpair(socket.AF_UNIX, kind)


class Reporter:
    """The worker's end. A task of its loop."""

    def __init__(self, server: Server, sock: socket.socket) -> None:
        self._server, self._sock = server, sock
        server.loop.watch(sock.fileno(), self, 0, select.EPOLLIN)
        server.when_closing.append(self._say_last)

    def notice(self, index: int, mask: int) -> None:
        pass  # `run` follows

    def run(self, now: float) -> bool:
        try:
            question = self._sock.recv(MAX_QUESTION_BYTES)
        except BlockingIOError:
            return False
        except OSError:
            question = b""
        if not question:
            self._server.loop.forget(self._sock.fileno())  # the supervisor has died: nobody asks
        else:
            self._answer(question[1:], with_connections=question[:1] == LISTED)
        return False

    def expire(self, now: float) -> float | None:
        return None

    def _answer(self, number: bytes, *, with_connections: bool) -> None:
        data = msgspec.json.encode(describe(self._server, with_connections=with_connections))
        try:
            memory = os.memfd_create("status", os.MFD_CLOEXEC)
        except OSError:
            return  # no descriptors left; the asker does without this worker
        try:
            with open(memory, "wb", closefd=False) as out:
                out.write(data)
            socket.send_fds(self._sock, [number], [memory])
        except OSError:
            pass  # nobody reads
        finally:
            os.close(memory)

    def _say_last(self) -> None:
        """What was counted outlives the worker."""
        self._answer(b"last", with_connections=False)
        self._sock.close()


class WorkerChannel:
    """The supervisor's end. A task of its loop."""

    def __init__(self, loop: Loop, sock: socket.socket, heard: Callable[[WorkerChannel, bytes], None]) -> None:
        """`heard(channel, number)` is called when the answer to question `number` has come, and with b"" at the end."""
        self._loop, self._sock, self._heard = loop, sock, heard
        self.last: Status | None = None
        """The latest that is known."""
        loop.watch(sock.fileno(), self, 0, select.EPOLLIN)

    def ask(self, number: bytes, *, with_connections: bool) -> bool:
        """Ask; return whether an answer may be hoped for."""
        try:
            self._sock.send((LISTED if with_connections else PLAIN) + number)
        except OSError:
            return False
        return True

    def notice(self, index: int, mask: int) -> None:
        pass  # `run` follows

    def run(self, now: float) -> bool:
        try:
            number, descriptors, _, _ = socket.recv_fds(self._sock, MAX_QUESTION_BYTES, 1)
        except BlockingIOError:
            return False
        except OSError:
            number, descriptors = b"", []
        for memory in descriptors:
            with open(memory, "rb") as source:
                try:
                    self.last = msgspec.json.decode(os.pread(source.fileno(), MAX_STATUS_BYTES, 0), type=Status)
                except (OSError, msgspec.DecodeError):
                    pass  # as if it had not come
        if not number:
            self.close()
        self._heard(self, number)
        return False

    def expire(self, now: float) -> float | None:
        return None

    def close(self) -> None:
        self._loop.forget(self._sock.fileno())
        self._sock.close()

    def give_up(self) -> None:
        """In a forked child: close its copy."""
        self._sock.close()
