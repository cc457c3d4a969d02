# SPDX-License-Identifier: Apache-2.0
"""A device on a Unix socket whose answers are a function of the test's."""

import contextlib
import socket
import struct
import threading

import pytest
from enclavekit_nsm import messages

LENGTH = struct.Struct(">I")


class FakeNsm:
    """Serves `path`; each answer is what `answer(request)` returns, raw bytes included, sent as it is."""

    def __init__(self, path):
        self.path = path
        self.requests = []
        self.connections = 0
        self.answer = lambda request: frame(messages.encode_response(self.respond(request)))
        self.closing = False
        self.sockets = []
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(path)
        self.listener.listen()
        self.thread = threading.Thread(target=self.accept, daemon=True)
        self.thread.start()

    def accept(self):
        while True:
            try:
                sock, _ = self.listener.accept()
            except OSError:
                return
            self.sockets.append(sock)
            self.connections += 1
            threading.Thread(target=self.serve, args=(sock,), daemon=True).start()

    def serve(self, sock):
        with sock, contextlib.suppress(OSError), sock.makefile("rb") as stream:
            while len(head := stream.read(LENGTH.size)) == LENGTH.size:
                request = messages.decode_request(stream.read(*LENGTH.unpack(head)))
                self.requests.append(request)
                answer = self.answer(request)
                if answer is None:
                    return
                sock.sendall(answer)

    def respond(self, request):
        match request:
            case messages.DescribeNsmRequest():
                return messages.DescribeNsmResponse(1, 0, 0, "i-1-enc2", 32, tuple(range(16)), "SHA384")
            case messages.DescribePcrRequest(index):
                return messages.DescribePcrResponse(index < 16, bytes([index]) * messages.PCR_BYTES)
            case messages.GetRandomRequest():
                return messages.GetRandomResponse(bytes(range(256)))
            case messages.AttestationRequest(user_data, nonce, public_key):
                return messages.AttestationResponse(b"|".join(value or b"" for value in (user_data, nonce, public_key)))
            case messages.ExtendPcrRequest(_, data):
                return messages.ExtendPcrResponse(data.ljust(messages.PCR_BYTES, b"\0"))
            case messages.LockPcrRequest():
                return messages.LockPcrResponse()
            case messages.LockPcrsRequest():
                return messages.LockPcrsResponse()

    def close(self):
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for sock in self.sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        self.thread.join()


def frame(data):
    return LENGTH.pack(len(data)) + data


@pytest.fixture
def fake_nsm(tmp_path):
    device = FakeNsm(str(tmp_path / "nsm"))
    yield device
    device.close()
