# SPDX-License-Identifier: Apache-2.0
"""The connections of a device with their sockets: which there are, what epoll watches each for, what each has to say.

What a slow socket leaves behind lies in one buffer per connection, so that many small packets cost no more than a few
large ones.
"""

from __future__ import annotations

import select
import socket
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from enclavekit_emulator.vsock_device.chain_views import trim
from enclavekit_emulator.vsock_device.connection import Connection, State

UNWATCHED = 1 << 31  # instead of epoll's events: not in epoll at all

Key = tuple[int, int, int]  # guest port, peer CID, peer port


@dataclass(slots=True, eq=False)
class Link:
    """A connection and its socket."""

    connection: Connection
    key: Key
    sock: socket.socket | None
    pending: bytearray = field(default_factory=bytearray)
    """What the guest has sent and the socket has not taken."""
    mask: int = 0
    """What epoll watches the socket for."""
    is_ready: bool = False
    """In the list of sockets that may have something for the guest."""
    on_answer: Callable[[bool], None] | None = None
    """Called once when the guest has accepted or refused."""


class Links:
    """All of them. Nothing here blocks."""

    def __init__(self, epoll: select.epoll) -> None:
        self._epoll = epoll
        self.by_key: dict[Key, Link] = {}
        self.by_fd: dict[int, Link] = {}
        self.to_say: OrderedDict[Key, Link] = OrderedDict()
        """Those with packets without payload for the guest, the longest waiting first."""
        self.ready: deque[Link] = deque()
        """Those whose sockets may have something for the guest, in turn."""

    def __len__(self) -> int:
        return len(self.by_key)

    def drop_all(self) -> None:
        """The guest's driver is gone, and with it every connection."""
        for link in list(self.by_key.values()):
            link.connection.state = State.CLOSED
            self.forget(link)
        self.to_say.clear()

    def add(self, link: Link) -> None:
        assert link.sock is not None
        self.by_key[link.key] = link
        self.by_fd[link.sock.fileno()] = link
        self._epoll.register(link.sock.fileno(), 0)
        self.note(link)

    def send(self, link: Link, payload: list[memoryview], length: int) -> None:
        """Write what the guest sent; what the socket does not take is copied and kept."""
        views = trim(payload, length)
        taken = 0
        if link.sock is None:
            taken = length  # nobody reads it any more
        elif not link.pending:
            try:
                taken = link.sock.sendmsg(views, (), socket.MSG_NOSIGNAL)
            except (BlockingIOError, InterruptedError):
                pass
            except OSError:
                self.abort(link)
                return
        link.connection.on_taken(taken)
        for view in views:
            if taken < len(view):
                link.pending += view[taken:]
            taken = max(taken - len(view), 0)
        if link.pending:
            self.watch(link, (link.mask & ~UNWATCHED) | select.EPOLLOUT)

    def drain(self, link: Link) -> None:
        """Write what is kept, as far as the socket takes it."""
        while link.pending and link.sock is not None:
            try:
                taken = link.sock.send(link.pending, socket.MSG_NOSIGNAL)
            except (BlockingIOError, InterruptedError):
                break
            except OSError:
                self.abort(link)
                return
            link.connection.on_taken(taken)
            del link.pending[:taken]  # moves a pointer, not the rest
        if not link.pending:
            self.watch(link, link.mask & ~select.EPOLLOUT)
            self.settle(link)
        self.note(link)

    def note(self, link: Link) -> None:
        """After a change: is there something to say, is it over?"""
        if link.connection.state is State.OPEN and link.connection.is_over and not link.pending:
            link.connection.abort()  # the RST that the guest's close() waits for
            self.close_socket(link)
        if link.connection.still_to_say:
            self.to_say[link.key] = link
        elif link.connection.state is State.CLOSED:
            self.forget(link)

    def settle(self, link: Link) -> None:
        """Shut the socket in the directions that have ended."""
        connection, sock = link.connection, link.sock
        if sock is None:
            return
        try:
            if not connection.guest_sends and not link.pending:
                sock.shutdown(socket.SHUT_WR)
            if not connection.guest_reads:
                sock.shutdown(socket.SHUT_RD)
        except OSError:
            pass  # it is gone: reading or writing says so
        if not connection.guest_sends and not link.pending and not connection.we_send:
            connection.on_socket_deaf()
            self.close_socket(link)

    def make_ready(self, link: Link) -> None:
        if not link.is_ready:
            link.is_ready = True
            self.ready.append(link)

    def answer(self, link: Link, accepted: bool) -> None:
        if link.on_answer is not None:
            call, link.on_answer = link.on_answer, None
            call(accepted)

    def abort(self, link: Link) -> None:
        link.connection.abort()
        self.answer(link, False)
        self.close_socket(link)
        self.note(link)

    def forget(self, link: Link) -> None:
        self.answer(link, False)
        self.close_socket(link)
        self.by_key.pop(link.key, None)
        self.to_say.pop(link.key, None)

    def watch(self, link: Link, mask: int) -> None:
        if link.sock is None or mask == link.mask:
            return
        if mask == UNWATCHED:
            self._epoll.unregister(link.sock.fileno())
        elif link.mask == UNWATCHED:
            self._epoll.register(link.sock.fileno(), mask)
        else:
            self._epoll.modify(link.sock.fileno(), mask)
        link.mask = mask

    def close_socket(self, link: Link) -> None:
        if link.sock is not None:
            del self.by_fd[link.sock.fileno()]
            link.sock.close()  # which takes it out of epoll as well
            link.sock = None
        link.pending.clear()
