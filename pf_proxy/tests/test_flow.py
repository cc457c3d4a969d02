# SPDX-License-Identifier: Apache-2.0
"""One direction, moved by hand between socket pairs."""

import os
import socket

import pytest
from enclavekit_pf_proxy.flow import COPY_BYTES, Flow, NotAllowed, Shared
from enclavekit_pf_proxy.half_close import Event, State
from enclavekit_pf_proxy.passage import Passage
from enclavekit_pf_proxy.pipes import LARGE_PIPE_BYTES, PipePool

SLACK = 64 * 1024


class Line:
    """A flow and the far ends of its sockets."""

    def __init__(self, shared):
        self.sender, source = socket.socketpair()
        sink, self.receiver = socket.socketpair()
        for sock in (self.sender, source, sink, self.receiver):
            sock.setblocking(False)
        self.flow = Flow(source, sink, shared, b"")

    def move(self, state=State.OPEN):
        """Let it move for as long as it can; return the first thing that happened to an end."""
        while (outcome := self.flow.move(state)) is True:
            pass
        return outcome

    def fill(self):
        """Send until neither the sender nor the flow can go on; return all bytes."""
        sent, before = b"", -1
        while len(sent) > before:
            before = len(sent)
            try:
                while True:
                    data = os.urandom(50_000)
                    sent += data[: self.sender.send(data)]
            except BlockingIOError:
                self.move()
        return sent

    def drain(self):
        """Return all that comes out."""
        received = b""
        while True:
            try:
                received += self.receiver.recv(1 << 20)
            except BlockingIOError:
                if self.move() is False and not self.has_bytes():
                    return received

    def has_bytes(self):
        try:
            return bool(self.receiver.recv(1, socket.MSG_PEEK))
        except BlockingIOError:
            return False

    def close(self):
        self.flow.give_up_pipe()
        for sock in (self.sender, self.receiver, self.flow.source, self.flow.sink):
            sock.close()


@pytest.fixture
def shared():
    shared = Shared()
    shared.pipes = PipePool(max_pipes=1)
    yield shared
    shared.close()


@pytest.fixture
def lines(shared):
    lines = [Line(shared) for _ in range(2)]
    yield lines
    for line in lines:
        line.close()


def bulk(line, count=3 * COPY_BYTES):
    data = os.urandom(count)
    line.sender.sendall(data)
    return data


def test_messages_are_copied_and_bulk_is_spliced(lines):
    line = lines[0]
    line.sender.send(b"message")
    assert line.move() is False
    assert not line.flow.is_bulk
    data = bulk(line)
    assert line.move() is False
    assert line.flow.is_bulk
    assert line.drain() == b"message" + data


def test_a_pipe_that_rests_goes_to_another_flow(lines):
    first, second = lines
    expected = [bulk(first), bulk(second)]
    first.move()
    second.move()
    assert second.flow.is_bulk and not first.flow.is_bulk
    expected[0] += bulk(first)
    assert [first.drain(), second.drain()] == expected


def test_a_pipe_with_bytes_in_it_stays(lines):
    first, second = lines
    sent = bulk(first)
    first.move()  # and rests
    sent += first.fill()
    data = bulk(second)
    second.move()
    assert first.flow.is_bulk and not second.flow.is_bulk  # which copies
    assert second.drain() == data
    assert first.drain() == sent


@pytest.mark.parametrize("count", [7, 3 * COPY_BYTES])
def test_an_end_comes_after_the_bytes(lines, count):
    line = lines[0]
    data = bulk(line, count)
    line.sender.close()
    line.flow.expect_end()
    assert line.move() is Event.SOURCE_ENDED
    assert line.move(State.DRAINING) is Event.EMPTIED
    assert line.receiver.recv(1 << 20, socket.MSG_WAITALL) == data


def test_a_lost_sink_is_told_and_then_bytes_are_dropped(lines):
    line = lines[0]
    line.receiver.close()
    bulk(line)
    assert line.move() is Event.SINK_FAILED
    line.sender.sendall(bytes(COPY_BYTES))
    assert line.move(State.DISCARDING) is False
    assert line.flow.total == 4 * COPY_BYTES


def test_what_the_sink_does_not_take_is_bounded(lines):
    line = lines[0]
    sent = bulk(line)
    line.move()
    sent += line.fill()
    in_sockets = sum(sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) for sock in (line.sender, line.flow.sink))
    assert len(sent) < LARGE_PIPE_BYTES + COPY_BYTES + in_sockets + 2 * SLACK  # the last buffer may go over
    assert line.drain() == sent


def test_what_has_to_be_seen_is_never_spliced(lines):
    line, seen = lines[0], []
    line.flow.check = lambda data: seen.append(data) or Passage.ALLOWED
    data = bulk(line) + bulk(line)
    assert line.drain() == data == b"".join(seen)
    assert not line.flow.is_bulk


def test_what_has_been_seen_enough_is_spliced(lines):
    line, seen = lines[0], []
    line.flow.check = lambda data: seen.append(data) or Passage.UNWATCHED
    data = bulk(line) + bulk(line)
    assert line.drain() == data and data.startswith(seen[0])
    assert len(seen) == 1 and line.flow.is_bulk


@pytest.mark.parametrize("count", [1, 2 * COPY_BYTES])
def test_what_is_not_allowed_does_not_leave(lines, count):
    line = lines[0]
    line.flow.check = lambda data: Passage.REFUSED
    bulk(line, count)
    with pytest.raises(NotAllowed):
        line.move()
    assert not line.has_bytes()
