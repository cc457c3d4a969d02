# SPDX-License-Identifier: Apache-2.0
"""One direction of a relay: moves bytes from a source to a sink, bulk ones with splice(2) so that they never enter
this process.

A message that one read takes whole is read and sent on: two system calls, where a pipe takes four. A flow whose read
filled the buffer borrows a pipe and is spliced until only little comes at a time.
"""

from __future__ import annotations

import os
import socket

from enclavekit_pf_proxy.half_close import Event, State
from enclavekit_pf_proxy.passage import CheckBytes, Passage
from enclavekit_pf_proxy.pipes import LARGE_PIPE_BYTES, Pipe, PipePool

COPY_BYTES = 16 * 1024  # a message; what is longer is bulk
UNIX_SEND_BYTES = 208 * 1024  # net.core.wmem_max as it comes, which the kernel doubles: twice a Unix socket's default
SPLICE_FLAGS = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK
OPEN = State.OPEN  # to look it up in its class takes longer than the comparison


class Shared:
    """What the flows of one loop share."""

    def __init__(self) -> None:
        self.pipes = PipePool()
        self.buffer = memoryview(bytearray(COPY_BYTES))
        self.null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        """Where bytes without a taker go."""

    def close(self) -> None:
        self.pipes.close()
        os.close(self.null)


class NotAllowed(Exception):
    """What was read may not go on."""


class Flow:
    """One direction between two non-blocking sockets that somebody else owns."""

    __slots__ = ("_buffered", "_pipe", "_reads_on", "_rests", "_shared", "_spliced", "_urgent", "check", "held",
                 "moved", "sink", "sink_full", "source", "total")  # fmt: skip

    def __init__(self, source: socket.socket, sink: socket.socket, shared: Shared, held: bytes) -> None:
        """`held`: bytes that go first."""
        self.source, self.sink, self._shared = source, sink, shared
        self.held = held
        """Read and not sent yet; goes before what is in the pipe."""
        self._pipe: Pipe | None = None
        self._buffered = 0  # bytes in the pipe
        self._spliced = False  # whether bulk data is under way
        self._rests = False  # whether the pipe may be given to another flow
        self.total = 0
        """Bytes taken from the source."""
        self.moved = False
        """Whether bytes moved since the owner last looked."""
        self.sink_full = False
        """Whether the sink took no more since the owner last looked."""
        self._reads_on = False  # a short read does not mean that there is nothing more to read
        self._urgent = False  # there was urgent data
        self.check: CheckBytes | None = None
        """Says of all that is read whether it may go on; what must be seen is never spliced."""

    def expect_end(self) -> None:
        """The source's end was announced: it may be right behind a short read."""
        self._reads_on = True

    def expect_urgent(self) -> None:
        """There is urgent data, which takes its place in the stream. Reads end before it, and splice(2) does not get
        past it at all: copy from now on.
        """
        self._reads_on = self._urgent = True

    def move(self, state: State) -> Event | bool:
        """Move some bytes, as far as `state` allows it; return whether there may be more to do at once, or what
        happened to an end. Raises NotAllowed; then the relay is over.
        """
        if self.held:
            return self._send_held(state)
        if self._spliced:
            return self._splice(state)
        if state is not OPEN:
            return self._end(state)
        # the way of nearly all messages: no call more than needs be
        buffer = self._shared.buffer
        try:
            count = self.source.recv_into(buffer)
        except BlockingIOError:
            return False
        except OSError:
            return Event.SOURCE_FAILED
        if not count:
            return Event.SOURCE_ENDED
        self.total += count
        self.moved = True
        if self.check is not None:
            self._ask(self.check(bytes(buffer[:count])))
        try:
            sent = self.sink.send(buffer[:count])
        except BlockingIOError:
            sent = 0
        except OSError:
            return Event.SINK_FAILED
        if sent < count:
            self._hold(buffer[sent:count])
        if count == COPY_BYTES:
            self._spliced = not self._urgent and self.check is None
            return True
        return self._reads_on or bool(self.held)

    def _ask(self, answer: Passage) -> None:
        if answer is Passage.UNWATCHED:
            self.check = None
        elif answer is not Passage.ALLOWED:
            raise NotAllowed

    @property
    def is_bulk(self) -> bool:
        """Whether much comes at a time."""
        return self._spliced

    def give_up_pipe(self) -> None:
        """Do without: another flow needs the pipe, or this one is over. Bytes in it are lost."""
        if self._pipe is not None:
            self._shared.pipes.take_back(self._pipe, self, empty=not self._buffered)
            self._pipe, self._buffered, self._spliced, self._rests = None, 0, False, False

    # messages

    def _end(self, state: State) -> Event | bool:
        """Nothing is to be sent any more: what is read is dropped. Nothing is held or in a pipe."""
        if state is State.DRAINING:
            return Event.EMPTIED
        if state is State.ENDED:
            return False
        try:
            count = self.source.recv_into(self._shared.buffer)
        except BlockingIOError:
            return False
        except OSError:
            return Event.SOURCE_FAILED
        if not count:
            return Event.SOURCE_ENDED
        self.total += count
        self.moved = True
        self._spliced = count == COPY_BYTES and not self._urgent
        return True

    def _send_held(self, state: State) -> Event | bool:
        data, self.held = memoryview(self.held), b""
        if state is State.OPEN or state is State.DRAINING:
            try:
                sent = self.sink.send(data)
            except BlockingIOError:
                sent = 0
            except OSError:
                return Event.SINK_FAILED
            self.moved |= sent > 0
            if sent < len(data):
                self._hold(data[sent:])
                return False  # the sink takes no more, and the pipe's turn comes after
        return True

    def _hold(self, data: memoryview) -> None:
        """Keep what the sink did not take."""
        self.held = bytes(data)
        self.sink_full = True

    # bulk

    def _splice(self, state: State) -> Event | bool:
        """Fill the pipe from the source and empty it into the sink."""
        if self._pipe is None:
            self._pipe = self._shared.pipes.lend(self)
            if self._pipe is None:
                self._spliced = False  # all pipes are in use: copy
                return True
            widen(self.sink)
        filled = 0
        if self._urgent:
            if not self._buffered:
                self.give_up_pipe()
                return True
        elif (state is State.OPEN or state is State.DISCARDING) and self._buffered < LARGE_PIPE_BYTES:
            # a pipe's size counts pages, of which several may be one buffer: it could hold eight times as much
            room = LARGE_PIPE_BYTES - self._buffered
            try:
                filled = os.splice(self.source.fileno(), self._pipe[1], room, flags=SPLICE_FLAGS)
            except BlockingIOError:
                # nothing to read, or the pipe is full; in the latter case emptying it makes room or waits for the sink
                pass
            except OSError:
                return Event.SOURCE_FAILED
            else:
                if not filled:
                    return Event.SOURCE_ENDED
                if self._rests:
                    self._rests = False
                    self._shared.pipes.wake(self)
                self._buffered += filled
                self.total += filled
                self.moved = True
        if self._buffered and state is not State.ENDED:
            return self._empty(state, filled)
        if state is State.DRAINING:
            self.give_up_pipe()
            return Event.EMPTIED
        self._rests = True
        self._shared.pipes.rest(self)
        return False

    def _empty(self, state: State, filled: int) -> Event | bool:
        assert self._pipe is not None
        sink = self._shared.null if state is State.DISCARDING else self.sink.fileno()
        try:
            emptied = os.splice(self._pipe[0], sink, self._buffered, flags=SPLICE_FLAGS)
        except BlockingIOError:
            self.sink_full = True
            return False
        except OSError:
            return Event.SINK_FAILED
        self._buffered -= emptied
        self.moved = True
        if self._buffered and state is not State.DISCARDING:
            self.sink_full = True  # splice(2) goes on until the sink takes no more
            return False
        if 0 < filled < COPY_BYTES:
            self.give_up_pipe()  # messages again
        return True


def widen(sink: socket.socket) -> None:
    """Let a Unix socket take more at a time: its reader and we then wake each other half as often."""
    if sink.family == socket.AF_UNIX:
        try:
            sink.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, UNIX_SEND_BYTES)
        except OSError:
            pass  # slower, not wrong
