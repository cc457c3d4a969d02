# SPDX-License-Identifier: Apache-2.0
"""One connection pair: moves bytes with splice(2) through a pipe each way, so that they never enter this process.

Made for an edge-triggered event loop: `pump` moves until neither end can go on, or until its share is used up.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from dataclasses import dataclass

from enclavekit_pf_proxy.half_close import Action, Event, HalfClose, State

PIPE_BYTES = 256 * 1024  # vsock is fastest with 64..256 KiB at a time and collapses above 2 MiB
MAX_ROUNDS = 8  # splices of one flow before others get their turn: at most 2 MiB
SPLICE_FLAGS = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK
RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # struct linger: on, 0 seconds; socket(7)


@dataclass(slots=True)
class Flow:
    """One direction. `buffered` bytes are in the pipe."""

    source: socket.socket
    sink: socket.socket
    pipe_out: int
    pipe_in: int
    buffered: int = 0
    total: int = 0
    """Bytes taken from the source."""


class Relay:
    """Two connected, non-blocking sockets. Owns both and closes them."""

    def __init__(self, client: socket.socket, upstream: socket.socket, null: int, now: float) -> None:
        """`null` is a descriptor of /dev/null, where bytes without a taker go. Raises OSError (no descriptors left)."""
        self.sockets = (client, upstream)
        self._null = null
        self._rules = HalfClose()
        self.descriptors = (client.fileno(), upstream.fileno())
        """Remembered, because a closed socket no longer knows its own."""
        self.last_activity = now
        """When bytes moved last, in the caller's clock."""
        self._moved_bytes = 0
        self.closed = False
        self.lingering = False
        first = make_pipe()
        try:
            second = make_pipe()
        except OSError:
            os.close(first[0])
            os.close(first[1])
            raise
        self.flows = (Flow(client, upstream, *first), Flow(upstream, client, *second))

    def pump(self, now: float) -> bool:
        """Move what can be moved; return whether more could be moved at once."""
        before, more = self._moved_bytes, False
        for number in (0, 1):
            if not self.closed:
                more |= self._pump_flow(number)
        if self._moved_bytes != before:
            self.last_activity = now
        return more and not self.closed

    def hang_up(self, side: int) -> None:
        """Side `side` is closed both ways (EPOLLHUP): the flow towards it has lost its sink."""
        towards = 1 - side
        if not self.closed and self._rules.states[towards] in (State.OPEN, State.DRAINING):
            self._apply(towards, Event.SINK_FAILED)

    def close(self, *, reset: bool = False) -> None:
        """Close everything. `reset` tells TCP peers that this is no regular end."""
        if self.closed:
            return
        self.closed = True
        for sock in self.sockets:
            close_socket(sock, reset=reset)
        for flow in self.flows:
            os.close(flow.pipe_out)
            os.close(flow.pipe_in)

    def _pump_flow(self, number: int) -> bool:
        flow = self.flows[number]
        for _ in range(MAX_ROUNDS):
            moved = self._fill(number, flow)
            if self.closed:
                return False
            moved |= self._empty(number, flow)
            if self.closed or not moved:
                return False
        return True

    def _fill(self, number: int, flow: Flow) -> bool:
        """Splice from the source into the pipe; return whether something happened."""
        if self._rules.states[number] not in (State.OPEN, State.DISCARDING):
            return False
        try:
            count = os.splice(flow.source.fileno(), flow.pipe_in, PIPE_BYTES, flags=SPLICE_FLAGS)
        except BlockingIOError:
            # nothing to read, or the pipe is full; in the latter case `_empty` makes room or waits for the sink
            return False
        except OSError:
            self._apply(number, Event.SOURCE_FAILED)
            return True
        if count == 0:
            self._apply(number, Event.SOURCE_ENDED)
        flow.buffered += count
        flow.total += count
        self._moved_bytes += count
        return True

    def _empty(self, number: int, flow: Flow) -> bool:
        """Splice from the pipe into the sink; return whether something happened."""
        state, moved = self._rules.states[number], False
        if flow.buffered and state is not State.ENDED:
            sink = self._null if state is State.DISCARDING else flow.sink.fileno()
            try:
                count = os.splice(flow.pipe_out, sink, flow.buffered, flags=SPLICE_FLAGS)
                flow.buffered -= count
                self._moved_bytes += count
                moved = count > 0
            except BlockingIOError:
                return False
            except OSError:
                self._apply(number, Event.SINK_FAILED)
                return True
        if not flow.buffered and state is State.DRAINING:
            self._apply(number, Event.EMPTIED)
        return moved

    def _apply(self, number: int, event: Event) -> None:
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


def make_pipe() -> tuple[int, int]:
    """Return a non-blocking pipe (read end, write end) of PIPE_BYTES, or of what the kernel allows."""
    read_end, write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        fcntl.fcntl(write_end, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    except OSError:
        pass  # over the user's pipe budget (pipe(7)): slower, not wrong
    return read_end, write_end


def close_socket(sock: socket.socket, *, reset: bool) -> None:
    """Close a socket; with `reset` a TCP peer sees an error instead of an end."""
    if reset and sock.family in (socket.AF_INET, socket.AF_INET6):
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        except OSError:
            pass  # not connected any more: nobody is left to tell
    sock.close()
