# SPDX-License-Identifier: Apache-2.0
"""One conformance suite for every transport that this machine can carry, then what is special to each."""

import asyncio
import errno
import json
import os
import socket
import threading

import pytest
from enclavekit_core import aio, fabric
from enclavekit_core.address import CID_ANY, CID_PARENT, TcpAddress, UnixAddress, VsockAddress
from enclavekit_core.errors import InputError, TransportError
from enclavekit_core.streams import Listener, connect

PAYLOAD = bytes(range(256)) * 4096


@pytest.fixture(params=["tcp", "unix", "fabric"])
def address(request, tmp_path, runtime_dir):
    return {
        "tcp": TcpAddress("127.0.0.1", 0),
        "unix": UnixAddress(str(tmp_path / "s.sock")),
        "fabric": VsockAddress(CID_PARENT, 9000),
    }[request.param]


def echo_once(listener):
    sock, peer = listener.accept()
    with sock:
        while chunk := sock.recv(65536):
            sock.sendall(chunk)
        sock.shutdown(socket.SHUT_WR)
    return peer


def test_stream_carries_bytes_both_ways_and_half_closes(address):
    with Listener(address) as listener:
        server = threading.Thread(target=echo_once, args=(listener,))
        server.start()
        with connect(listener.bound_address) as sock:
            sender = threading.Thread(target=lambda: (sock.sendall(PAYLOAD), sock.shutdown(socket.SHUT_WR)))
            sender.start()
            received = b"".join(iter(lambda: sock.recv(65536), b""))
            sender.join()
        server.join()
    assert received == PAYLOAD


def test_second_listener_is_refused_and_the_first_lives_on(address):
    with Listener(address) as listener:
        with pytest.raises(TransportError) as caught:
            Listener(listener.bound_address)
        assert caught.value.errno == errno.EADDRINUSE
        assert str(caught.value).startswith(f"cannot listen on {listener.bound_address}: ")
        connect(listener.bound_address).close()


def test_nobody_listening_is_a_transport_error(address):
    with Listener(address) as listener:
        target = listener.bound_address
    with pytest.raises(TransportError) as caught:
        connect(target, timeout_s=5)
    assert str(target) in str(caught.value)
    assert caught.value.exit_code == 3


async def test_aio_serves_and_connects(address):
    async def handler(reader, writer, peer):
        writer.write(await reader.read())
        writer.write_eof()
        writer.close()

    with Listener(address) as listener:
        target = listener.bound_address
        server = await aio.start_server(handler, listener)
        reader, writer = await aio.open_stream(target)
        writer.write(PAYLOAD)
        writer.write_eof()
        assert await asyncio.wait_for(reader.read(-1), 20) == PAYLOAD
        writer.close()
        server.close()


def test_socket_file_of_a_dead_listener_is_replaced(tmp_path, runtime_dir):
    for target in (UnixAddress(str(tmp_path / "s.sock")), VsockAddress(CID_ANY, 7)):
        first = Listener(target)
        first.socket.close()  # dies without close(): the file stays
        with Listener(target) as second:
            assert second.socket.fileno() >= 0
            connect(VsockAddress(CID_PARENT, 7) if isinstance(target, VsockAddress) else target).close()


def test_close_leaves_a_file_that_is_not_ours(tmp_path):
    path = tmp_path / "s.sock"
    listener = Listener(UnixAddress(str(path)))
    path.unlink()
    path.write_text("somebody else's")
    listener.close()
    assert path.read_text() == "somebody else's"


def test_fabric_peer_on_the_host_is_the_parent(runtime_dir):
    with Listener(VsockAddress(CID_PARENT, 9000)) as listener:
        client = connect(VsockAddress(CID_PARENT, 9000))
        accepted, peer = listener.accept()
        assert peer.cid == CID_PARENT
        accepted.close()
        client.close()


def test_fabric_never_follows_a_link_that_an_enclave_planted(runtime_dir, tmp_path):
    fabric.write_record(f"{runtime_dir}/registry/16.json", {"cid": 16, "transport": "fabric"})
    os.mkdir(f"{runtime_dir}/fabric/16")
    with Listener(UnixAddress(str(tmp_path / "docker.sock"))):
        os.symlink(tmp_path / "docker.sock", f"{runtime_dir}/fabric/16/53000.sock")
        with pytest.raises(TransportError):
            connect(VsockAddress(16, 53000))


def test_enclave_side_prefers_its_own_parent_sockets(runtime_dir, monkeypatch):
    os.makedirs(f"{runtime_dir}/fabric/16/parent")
    with (
        Listener(UnixAddress(f"{runtime_dir}/fabric/16/parent/9000.sock")) as private,
        Listener(VsockAddress(CID_PARENT, 9000)) as shared,
    ):
        fabric.write_record(f"{runtime_dir}/registry/self.json", {"cid": 16})
        private.socket.settimeout(5)
        shared.socket.settimeout(5)
        with connect(VsockAddress(CID_PARENT, 9000)):
            private.accept()[0].close()
        private.close()
        with connect(VsockAddress(CID_PARENT, 9000)):
            shared.accept()[0].close()


@pytest.mark.parametrize("reply", [b"OK 1073741824\n", b"OK 5\nfirst bytes"])
def test_hybrid_handshake_leaves_the_stream_alone(runtime_dir, tmp_path, reply):
    path = str(tmp_path / "vm.sock")
    fabric.write_record(f"{runtime_dir}/registry/20.json", {"cid": 20, "transport": "hybrid", "path": path})
    heard = []
    with Listener(UnixAddress(path)) as listener:

        def serve():
            sock, _ = listener.accept()
            with sock:
                heard.append(sock.recv(100))
                sock.sendall(reply)

        server = threading.Thread(target=serve)
        server.start()
        with connect(VsockAddress(20, 53000)) as sock:
            rest = b"".join(iter(lambda: sock.recv(100), b""))
        server.join()
    assert heard == [b"CONNECT 53000\n"]
    assert rest == reply.partition(b"\n")[2]


@pytest.mark.parametrize("reply", [b"", b"no\n", b"x" * 1000, b"OK"])
def test_hybrid_handshake_refuses_anything_else(runtime_dir, tmp_path, reply):
    path = str(tmp_path / "vm.sock")
    fabric.write_record(f"{runtime_dir}/registry/20.json", {"cid": 20, "transport": "hybrid", "path": path})
    with Listener(UnixAddress(path)) as listener:

        def serve():
            sock, _ = listener.accept()
            with sock:
                sock.recv(100)
                sock.sendall(reply)

        server = threading.Thread(target=serve)
        server.start()
        with pytest.raises(TransportError):
            connect(VsockAddress(20, 53000))
        server.join()


def test_a_full_queue_is_waited_for_and_not_for_ever(tmp_path):
    with Listener(UnixAddress(str(tmp_path / "s.sock")), backlog=0) as listener:
        first = connect(listener.address)
        with pytest.raises(TransportError):
            connect(listener.address, 0.05)
        accepted = []
        server = threading.Thread(target=lambda: accepted.extend(listener.accept()[0] for _ in range(2)))
        done = []
        waiting = threading.Thread(target=lambda: done.append(connect(listener.address, 60)))
        waiting.start()
        server.start()
        waiting.join()
        server.join()
        done[0].sendall(b"here")
        assert accepted[1].recv(10) == b"here"
        for sock in (first, *done, *accepted):
            sock.close()


def test_unknown_cid_goes_to_the_kernel(runtime_dir):
    assert fabric.find_route(77) == fabric.Route(77, fabric.Transport.KERNEL)


def test_no_registry_means_the_kernel(tmp_path, monkeypatch):
    monkeypatch.setenv(fabric.RUNTIME_DIR_VARIABLE, str(tmp_path / "none"))
    assert not fabric.is_active()
    assert fabric.find_route(3).transport is fabric.Transport.KERNEL
    assert fabric.find_listen_directory(CID_ANY) is None


def test_runtime_dir_open_to_others_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "rt"
    path.mkdir()
    path.chmod(0o777)
    monkeypatch.setenv(fabric.RUNTIME_DIR_VARIABLE, str(path))
    with pytest.raises(InputError):
        fabric.ensure_runtime_dir()


def test_records_are_whole(runtime_dir):
    path = f"{runtime_dir}/registry/9.json"
    fabric.write_record(path, {"cid": 9})
    with open(path) as source:
        assert json.load(source) == {"cid": 9}
    assert fabric.read_record(f"{runtime_dir}/registry/10.json") is None
