# SPDX-License-Identifier: Apache-2.0
"""The socket that stands for /dev/nsm, seen by clients that are slow, many, mad or in a hurry."""

import datetime
import socket
import threading

import pytest
from enclavekit_core.errors import DeviceError
from enclavekit_emulator import nsm_server
from enclavekit_emulator.faults import Fault
from enclavekit_emulator.nsm_authority import make_root
from enclavekit_emulator.nsm_service import NsmService
from enclavekit_emulator.pcr_bank import PcrBank
from enclavekit_nsm import messages as nsm
from enclavekit_nsm.client import LENGTH, NsmClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

MODULE = "i-0123456789abcdef-enc0123456789abcdef"
RANDOM = nsm.encode_request(nsm.GetRandomRequest())


@pytest.fixture(scope="module")
def root():
    return make_root(datetime.datetime.now(datetime.UTC))


@pytest.fixture
def serve(tmp_path, root):
    servers = []

    def start(*faults):
        path = str(tmp_path / f"nsm{len(servers)}")
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        listener.listen(128)
        service = NsmService(PcrBank(), root, MODULE, faults=frozenset(faults))
        servers.append(nsm_server.serve_nsm(listener, service))
        return path

    yield start
    for server in servers:
        server.close()


def connect(path):
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(path)
    sock.settimeout(20)
    return sock


def works(path):
    with NsmClient.open(path) as client:
        return len(client.get_random()) == 256


def read_to_end(sock):
    data = b""
    try:
        while chunk := sock.recv(65536):
            data += chunk
    except ConnectionResetError:
        pass
    return data


def test_frame_may_come_byte_by_byte_and_frames_may_come_together(serve):
    with connect(serve()) as sock:
        for byte in LENGTH.pack(len(RANDOM)) + RANDOM:
            sock.sendall(bytes([byte]))
        sock.sendall((LENGTH.pack(len(RANDOM)) + RANDOM) * 2)
        sock.shutdown(socket.SHUT_WR)
        data = read_to_end(sock)
    size = LENGTH.size + LENGTH.unpack(data[:4])[0]
    assert len(data) == 3 * size
    assert len({data[at : at + size] for at in range(0, len(data), size)}) == 3


def test_largest_frame_is_answered_and_a_larger_one_ends_the_connection(serve):
    path = serve()
    with connect(path) as sock:
        sock.sendall(LENGTH.pack(nsm.MAX_REQUEST_BYTES) + bytes(nsm.MAX_REQUEST_BYTES))
        (length,) = LENGTH.unpack(sock.recv(4, socket.MSG_WAITALL))
        answer = nsm.decode_response(sock.recv(length, socket.MSG_WAITALL))
        assert answer == nsm.ErrorResponse(nsm.ErrorCode.INVALID_OPERATION)
        sock.sendall(LENGTH.pack(nsm.MAX_REQUEST_BYTES + 1))
        assert read_to_end(sock) == b""
    assert works(path)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(raw=st.binary(max_size=200))
def test_any_bytes_leave_the_server_standing(serve_once, raw):
    with connect(serve_once) as sock:
        sock.sendall(raw)
        sock.shutdown(socket.SHUT_WR)
        read_to_end(sock)
    assert works(serve_once)


@pytest.fixture
def serve_once(serve):
    return serve()


def test_client_that_never_reads_or_never_ends_its_frame_is_let_go(serve, monkeypatch):
    monkeypatch.setattr(nsm_server, "FRAME_TIMEOUT_S", 0.2)
    path = serve()
    with connect(path) as deaf, connect(path) as halting:
        halting.sendall(b"\0")
        assert halting.recv(1) == b""
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        with pytest.raises(OSError, match=r"[Bb]roken pipe|reset"):
            while True:  # until the answers fill both buffers and the server gives up
                deaf.sendall(LENGTH.pack(len(RANDOM)) + RANDOM)
    assert works(path)


def test_idle_clients_take_no_more_than_their_places(serve, monkeypatch):
    monkeypatch.setattr(nsm_server, "MAX_CONNECTIONS", 4)
    path = serve()
    idle = [connect(path) for _ in range(4)]
    with connect(path) as refused:
        assert refused.recv(1) == b""
    for sock in idle:
        sock.sendall(LENGTH.pack(len(RANDOM)) + RANDOM)
        assert len(sock.recv(4, socket.MSG_WAITALL)) == 4
        sock.close()


def test_a_machine_without_threads_to_spare_serves_the_next_client(serve, monkeypatch):
    path = serve()
    real = threading.Thread.start

    def start(thread):
        monkeypatch.setattr(threading.Thread, "start", real)
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    with connect(path) as unlucky:
        assert unlucky.recv(1) == b""
    assert works(path)


def test_registers_are_one_for_all_clients(serve):
    path = serve()

    def extend():
        with NsmClient.open(path) as client:
            for _ in range(10):
                client.extend_pcr(16, b"x")

    threads = [threading.Thread(target=extend) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    bank = PcrBank()
    for _ in range(40):
        value = bank.extend(16, b"x")
    with NsmClient.open(path) as client:
        assert client.describe_pcr(16) == nsm.DescribePcrResponse(False, value)


def test_failing_nsm_answers_every_request_with_internal_error(serve):
    with NsmClient.open(serve(Fault.FAILING)) as client:
        for call in (client.get_random, client.describe_nsm, client.attestation, lambda: client.lock_pcr(16)):
            with pytest.raises(DeviceError, match="InternalError"):
                call()


def test_slow_nsm_outlasts_a_client_in_a_hurry_and_serves_a_patient_one(serve, monkeypatch):
    monkeypatch.setattr(nsm_server, "SLOW_S", 0.3)
    path = serve(Fault.SLOW)
    with NsmClient.open(path, timeout_s=0.05) as client, pytest.raises(DeviceError, match="timed out"):
        client.get_random()
    assert works(path)
