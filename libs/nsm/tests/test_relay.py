# SPDX-License-Identifier: Apache-2.0
"""The way from /dev/nsm to the emulator: answers that come in pieces, connections that end."""

import errno
import fcntl
import os
import socket
import struct
import termios
import threading

import pytest
from enclavekit_core import fabric
from enclavekit_core.address import CID_PARENT, VsockAddress
from enclavekit_core.streams import Listener
from enclavekit_nsm.client import LENGTH
from enclavekit_nsm.relay import Upstream

ANSWER = bytes(range(256)) * 20


@pytest.fixture
def emulator(tmp_path_factory, monkeypatch):
    """Serve connections of the parent's port 9004 with the given handlers, one after the other."""
    monkeypatch.setenv(fabric.RUNTIME_DIR_VARIABLE, str(tmp_path_factory.mktemp("r")))
    fabric.ensure_runtime_dir()
    listener = Listener(VsockAddress(CID_PARENT, 9004))
    threads = []

    def serve(*handlers):
        def run():
            for handle in handlers:
                sock, _ = listener.accept()
                with sock:
                    handle(sock)

        threads.append(threading.Thread(target=run))
        threads[-1].start()

    yield serve
    for thread in threads:
        thread.join()
    listener.close()


def read_frame(sock):
    data = sock.recv(LENGTH.size, socket.MSG_WAITALL)
    return sock.recv(LENGTH.unpack(data)[0], socket.MSG_WAITALL)


def in_pieces(sock):
    """Each piece is sent when the one before has been taken, so that no read can see two."""
    assert read_frame(sock) == b"question"
    frame = LENGTH.pack(len(ANSWER)) + ANSWER
    for start in range(0, len(frame), 1000):
        sock.sendall(frame[start : start + 1000])
        while struct.unpack("i", fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4)))[0]:
            os.sched_yield()


def in_one_piece(sock):
    while frame := read_frame(sock) if sock.recv(1, socket.MSG_PEEK) else b"":
        sock.sendall(LENGTH.pack(len(frame)) + frame)


def test_an_answer_in_pieces_is_whole(emulator):
    emulator(in_pieces)
    upstream = Upstream(9004)
    assert upstream.exchange(b"question") == ANSWER
    upstream._socket.close()


def test_a_connection_that_has_ended_is_made_again(emulator):
    emulator(lambda sock: None, in_one_piece)
    upstream = Upstream(9004)
    assert [upstream.exchange(word) for word in (b"one", b"two")] == [b"one", b"two"]
    upstream._socket.close()


def test_two_broken_answers_are_an_input_output_error(emulator):
    def short(sock):
        read_frame(sock)
        sock.sendall(LENGTH.pack(100) + b"short")

    emulator(short, short)
    with pytest.raises(OSError) as refused:
        Upstream(9004).exchange(b"question")
    assert refused.value.errno == errno.EIO
