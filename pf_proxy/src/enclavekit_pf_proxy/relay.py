# SPDX-License-Identifier: Apache-2.0
"""One connection pair: moves bytes both ways, bulk ones with splice(2) so that they never enter this process.

A message that one read takes whole is read and sent on: two system calls, where a pipe takes four. A flow whose read
filled the buffer borrows a pipe and is spliced until it falls quiet. Made for an edge-triggered event loop: `pump`
moves until neither end can go on, or until its share is used up.
"""

from __future__ import annotations

import os
import select
import socket
import struct
from collections.abc import Callable

from enclavekit_pf_proxy.half_close import Action, Event, HalfClose, State
from enclavekit_pf_proxy.pipes import PIPE_BYTES, Pipe, PipePool

COPY_BYTES = 16 * 1024  # a message; what is longer is bulk
MAX_ROUNDS = 8  # moves of one flow before others get their turn: at most 2 MiB
SPLICE_FLAGS = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK
RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # struct linger: on, 0 seconds; socket(7)
ENDING = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR


class Flow:
    """One direction."""

    __slots__ = ("buffered", "check", "held", "pipe", "sink", "source", "source_ending", "spliced", "total")

    def __init__(self, source: socket.socket, sink: socket.socket, held: bytes) -> None:
        self.source, self.sink = source, sink
        self.held = held
        """Read and not sent yet; goes before what is in the pipe."""
        self.pipe: Pipe | None = None
        self.buffered = 0
        """Bytes in the pipe."""
        self.total = 0
        """Bytes taken from the source."""
        self.spliced = False
        """Whether bulk data is under way."""
        self.check: Callable[[bytes], bool] | None = None
        """Says of everything that is read whether it may go on; what must be seen is never spliced."""
        self.source_ending = False
        """Whether an end was announced: a short read then does not mean that there is nothing more to read."""


class Shared:
    """What the relays of one loop share."""

    def __init__(self) -> None:
        self.pipes = PipePool()
        self.buffer = memoryview(bytearray(COPY_BYTES))
        self.null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        """Where bytes without a taker go."""

    def close(self) -> None:
        self.pipes.close()
        os.close(self.null)


class Relay:
    """Two connected, non-blocking sockets. Owns both and closes them."""

    __slots__ = (
        "_hung",
        "_moved_bytes",
        "_pending",
        "_rules",
        "_shared",
        "_want_write",
        "changed",
        "closed",
        "flows",
        "last_activity",
        "lingering",
        "sockets",
    )

    def __init__(
        self,
        client: socket.socket,
        upstream: socket.socket,
        shared: Shared,
        now: float,
        want_write: Callable[[int], None],
        held: tuple[bytes, bytes] = (b"", b""),
    ) -> None:
        """`want_write(side)` is called when side 0 (client) or 1 (upstream) takes no more: `notice` must follow when
        it does again. `held`: bytes that go first, to the upstream and to the client.
        """
        self.sockets = (client, upstream)
        self._shared, self._want_write = shared, want_write
        self._rules = HalfClose()
        self.last_activity = now
        """When bytes moved last, in the caller's clock."""
        self._moved_bytes = 0
        self._pending = 0b11
        """The flows that may go on, as bits."""
        self._hung = 0
        """The sides that are closed both ways, as bits."""
        self.changed = False
        """Whether an end has moved since the caller last looked."""
        self.closed = False
        self.lingering = False
        self.flows = (Flow(client, upstream, held[0]), Flow(upstream, client, held[1]))

    @property
    def half_closed(self) -> bool:
        """Whether one direction, and one only, has ended."""
        return (self._rules.states[0] is State.OPEN) != (self._rules.states[1] is State.OPEN)

    def notice(self, side: int, mask: int) -> None:
        """Take epoll's word about one side: what it sends is flow `side`, what it takes is the other one."""
        if mask & ENDING:
            self.flows[side].source_ending = True
            self._pending = 0b11
            if mask & select.EPOLLHUP:
                self._hung |= 1 << side
            return
        if mask & select.EPOLLIN:
            self._pending |= 1 << side
        if mask & select.EPOLLOUT:
            self._pending |= 2 >> side

    def pump(self, now: float) -> bool:
        """Move what can be moved; return whether more could be moved at once."""
        if self._hung:
            self._hang_up()
        before, pending = self._moved_bytes, self._pending
        self._pending = 0
        for number in (0, 1):
            if pending >> number & 1 and not self.closed and self._pump_flow(number):
                self._pending |= 1 << number
        if self._moved_bytes != before:
            self.last_activity = now
        return self._pending != 0 and not self.closed

    def close(self, *, reset: bool = False) -> None:
        """Close everything. `reset` tells TCP peers that this is no regular end."""
        if self.closed:
            return
        self.closed = True
        for sock in self.sockets:
            close_socket(sock, reset=reset)
        for flow in self.flows:
            self._return_pipe(flow)

    def _hang_up(self) -> None:
        """What is closed both ways (EPOLLHUP) takes nothing: the flow towards it has lost its sink."""
        for side in (0, 1):
            towards = 1 - side
            takes = self._rules.states[towards] in (State.OPEN, State.DRAINING)
            if self._hung >> side & 1 and takes and not self.closed:
                self._apply(towards, Event.SINK_FAILED)
        self._hung = 0

    def _pump_flow(self, number: int) -> bool:
        flow = self.flows[number]
        for _ in range(MAX_ROUNDS):
            moved = self._splice(number, flow) if flow.spliced or flow.held else self._copy(number, flow)
            if self.closed or not moved:
                return False
        return True

    # messages

    def _copy(self, number: int, flow: Flow) -> bool:
        """Read once and send it on; return whether there may be more to read. Nothing is held or in a pipe."""
        state = self._rules.states[number]
        if state is State.DRAINING:
            self._apply(number, Event.EMPTIED)
            return True
        if state is State.ENDED:
            return False
        buffer = self._shared.buffer
        try:
            count = flow.source.recv_into(buffer)
        except BlockingIOError:
            return False
        except OSError:
            self._apply(number, Event.SOURCE_FAILED)
            return True
        if not count:
            self._apply(number, Event.SOURCE_ENDED)
            return True
        flow.total += count
        self._moved_bytes += count
        if flow.check is not None and not flow.check(bytes(buffer[:count])):
            self.changed = True
            self.close(reset=True)
            return False
        if state is State.OPEN:
            self._send(number, flow, buffer[:count])
        if count == COPY_BYTES:
            flow.spliced = flow.check is None
            return True
        return flow.source_ending or bool(flow.held)

    def _send(self, number: int, flow: Flow, data: memoryview) -> None:
        """Send `data`; what is not taken is held."""
        try:
            sent = flow.sink.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._apply(number, Event.SINK_FAILED)
            return
        if sent < len(data):
            flow.held = bytes(data[sent:])
            self._want_write(1 - number)

    # bulk

    def _splice(self, number: int, flow: Flow) -> bool:
        """Fill the pipe from the source and empty it into the sink; return whether something happened."""
        moved = self._send_held(number, flow) if flow.held else False
        if self.closed:
            return False
        if flow.held:
            return False  # the sink takes no more, and the pipe's turn comes after
        if not flow.spliced:
            return moved
        if flow.pipe is None:
            flow.pipe = self._shared.pipes.lend()
            if flow.pipe is None:
                flow.spliced = False  # all pipes are lent: copy
                return True
        count = self._fill(number, flow)
        if self.closed:
            return False
        moved |= count != 0
        moved |= self._empty(number, flow)
        if not self.closed and not moved and not flow.buffered:
            # quiet: the pipe may serve somebody else
            self._return_pipe(flow)
            flow.spliced = False
            return self._rules.states[number] is State.DRAINING  # `_copy` passes the end on
        return moved

    def _fill(self, number: int, flow: Flow) -> int:
        """Splice from the source into the pipe; return how many bytes, or -1 for an end or error."""
        if self._rules.states[number] not in (State.OPEN, State.DISCARDING) or flow.pipe is None:
            return 0
        try:
            count = os.splice(flow.source.fileno(), flow.pipe[1], PIPE_BYTES, flags=SPLICE_FLAGS)
        except BlockingIOError:
            # nothing to read, or the pipe is full; in the latter case `_empty` makes room or waits for the sink
            return 0
        except OSError:
            self._apply(number, Event.SOURCE_FAILED)
            return -1
        if count == 0:
            self._apply(number, Event.SOURCE_ENDED)
            return -1
        flow.buffered += count
        flow.total += count
        self._moved_bytes += count
        return count

    def _empty(self, number: int, flow: Flow) -> bool:
        """Splice from the pipe into the sink; return whether something happened."""
        state, moved = self._rules.states[number], False
        if flow.buffered and flow.pipe is not None and state is not State.ENDED:
            sink = self._shared.null if state is State.DISCARDING else flow.sink.fileno()
            try:
                count = os.splice(flow.pipe[0], sink, flow.buffered, flags=SPLICE_FLAGS)
            except BlockingIOError:
                self._want_write(1 - number)
                return False
            except OSError:
                self._apply(number, Event.SINK_FAILED)
                return True
            flow.buffered -= count
            self._moved_bytes += count
            moved = count > 0
            if flow.buffered and state is not State.DISCARDING:
                self._want_write(1 - number)
        if not flow.buffered and state is State.DRAINING:
            self._apply(number, Event.EMPTIED)
            return True
        return moved

    def _send_held(self, number: int, flow: Flow) -> bool:
        data, flow.held = memoryview(flow.held), b""
        if self._rules.states[number] in (State.OPEN, State.DRAINING):
            self._send(number, flow, data)
        sent = len(data) - len(flow.held)
        self._moved_bytes += sent
        return sent > 0

    def _return_pipe(self, flow: Flow) -> None:
        if flow.pipe is not None:
            self._shared.pipes.take_back(flow.pipe, empty=not flow.buffered)
            flow.pipe, flow.buffered = None, 0

    def _apply(self, number: int, event: Event) -> None:
        self.changed = True
        for flow, action in self._rules.receive(number, event):
            match action:
                case Action.SHUT_DOWN_SINK:
                    try:
                        self.flows[flow].sink.shutdown(socket.SHUT_WR)
                    except OSError:
                        pass  # the sink has gone meanwhile; its own flow notices
                case Action.LINGER:
                    self.lingering = True
                case Action.CLOSE:
                    self.close()
        if event is Event.SOURCE_FAILED:
            self._pending |= 0b11  # the other flow has lost its sink


def close_socket(sock: socket.socket, *, reset: bool) -> None:
    """Close a socket; with `reset` a TCP peer sees an error instead of an end."""
    if reset and sock.family in (socket.AF_INET, socket.AF_INET6):
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        except OSError:
            pass  # not connected any more: nobody is left to tell
    sock.close()


def prepare_socket(sock: socket.socket, keepalive_s: int) -> None:
    """Make a socket ready to be relayed: non-blocking, and on TCP no delay for small writes, keep-alive."""
    sock.setblocking(False)
    if sock.family in (socket.AF_INET, socket.AF_INET6):
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, keepalive_s)
        except OSError:
            pass  # reset meanwhile: the relay notices at once
