# SPDX-License-Identifier: Apache-2.0
"""The transparent pair: ours with ours, with the Rust framework's bytes both ways, and what is refused."""

import errno
import os
import shutil
import socket
import struct
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from enclavekit_core.address import CID_ANY, CID_PARENT, TcpAddress, VsockAddress
from enclavekit_core.errors import TransportError
from enclavekit_core.proxy_protocol import Proxied, decode_proxied, encode_v1, encode_v2
from enclavekit_core.streams import Listener, connect
from enclavekit_pf_proxy import target
from enclavekit_pf_proxy.destinations import DestinationRules, parse_range
from enclavekit_pf_proxy.limits import Limits
from enclavekit_pf_proxy.server import Server
from enclavekit_pf_proxy.service import Endpoint, Header, Mode, Service
from enclavekit_pf_proxy.wire.request import REPLY, Request, Status, decode_reply, decode_request, encode_request

from .conftest import in_thread

PATIENCE_S = 20.0
HOST_END = VsockAddress(CID_PARENT, 8888)
TCP = Endpoint(TcpAddress("127.0.0.1", 0))
LOOPBACK = DestinationRules((parse_range("127.0.0.0/8"), parse_range("::1")))


@contextmanager
def running(*services):
    opened = [
        (one, [(offset, Listener(one.listen.at(offset))) for offset in range(one.listen.ports)]) for one in services
    ]
    server = Server(opened)
    with in_thread(server):
        yield server


def host_end(**options):
    options.setdefault("destinations", LOOPBACK)
    return Service(Mode.VSOCK_TO_IP_TRANSPARENT, Endpoint(VsockAddress(CID_ANY, 8888)), None, **options)


@pytest.fixture
def web():
    """A TCP listener that is a destination."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(PATIENCE_S)
        yield listener


def dial(address):
    sock = connect(address)
    sock.settimeout(PATIENCE_S)
    return sock


def assert_reset(address, data=b""):
    """A client that sends `data` is reset, be it before its own connect has returned."""
    with pytest.raises((ConnectionResetError, BrokenPipeError, TransportError)) as caught, dial(address) as client:
        client.sendall(data)
        client.recv(1)
    assert caught.value.errno in (errno.ECONNRESET, errno.EPIPE)


def read_exactly(sock, count):
    return sock.recv(count, socket.MSG_WAITALL)


@pytest.mark.parametrize("pieces", ["whole", "bytes", "with the stream"])
def test_the_rust_frameworks_header_is_understood(web, pieces):
    port = web.getsockname()[1]
    header = bytes([4, 1, 0, 0, 127]) + struct.pack("<H", port)
    with running(host_end()), dial(HOST_END) as client:
        if pieces == "with the stream":
            client.sendall(header + b"hello")
        else:
            for piece in [header] if pieces == "whole" else [header[i : i + 1] for i in range(7)]:
                client.sendall(piece)
            client.sendall(b"hello")
        upstream, _ = web.accept()
        assert read_exactly(upstream, 5) == b"hello"
        upstream.sendall(b"and back")
        upstream.close()
        assert read_exactly(client, 8) == b"and back"
        assert client.recv(1) == b""


def test_ipv6_destinations():
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as web, running(host_end()), dial(HOST_END) as client:
        client.sendall(bytes([6, 1]) + bytes(15) + struct.pack("<H", web.getsockname()[1]) + b"six")
        upstream, _ = web.accept()
        with upstream:
            assert read_exactly(upstream, 3) == b"six"


def ask(client, destination, source=None):
    client.sendall(encode_request(Request(7, destination, source)))
    return decode_reply(read_exactly(client, REPLY.size))


def test_the_versioned_header_is_answered(web):
    port = web.getsockname()[1]
    with running(host_end()), dial(HOST_END) as client:
        assert ask(client, TcpAddress("127.0.0.1", port)) is Status.CONNECTED
        upstream, _ = web.accept()
        client.sendall(b"x")
        assert read_exactly(upstream, 1) == b"x"
        upstream.close()


def test_names_are_resolved_by_the_end_that_connects(web):
    with running(host_end()), dial(HOST_END) as client:
        assert ask(client, TcpAddress("localhost", web.getsockname()[1])) is Status.CONNECTED


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::ffff:127.0.0.1", "169.254.169.254", "::1", "0.0.0.0"])
def test_guarded_destinations_are_denied_by_default(host):
    with running(host_end(destinations=DestinationRules())), dial(HOST_END) as client:
        assert ask(client, TcpAddress(host, 80)) is Status.DENIED
        assert client.recv(1) == b""


def test_failures_are_told_apart():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        free = probe.getsockname()[1]
    with running(host_end()):
        with dial(HOST_END) as client:
            assert ask(client, TcpAddress("127.0.0.1", free)) is Status.REFUSED
        with dial(HOST_END) as client:
            assert ask(client, TcpAddress("no.such.name.invalid", 80)) is Status.UNKNOWN_NAME
        with dial(HOST_END) as client:
            client.sendall(b"\xe5\x07")
            assert decode_reply(read_exactly(client, REPLY.size)) is Status.MALFORMED


def test_noise_and_silence_are_ended():
    with running(host_end(limits=Limits(header_timeout_s=0.2))) as server:
        with dial(HOST_END) as client:
            client.sendall(b"GET / HTTP/1.1\r\n")
            with pytest.raises(ConnectionResetError):  # a Unix socket's word for unread bytes
                assert client.recv(1) == b""
                raise ConnectionResetError
        with dial(HOST_END) as client:
            client.sendall(b"\4\1")
            assert client.recv(1) == b""
        assert server.totals.refused == 2


@pytest.fixture
def diverted(web, monkeypatch):
    """No firewall in this process: connections to the listener count as diverted from the web server's address."""
    where = TcpAddress("127.0.0.1", web.getsockname()[1])
    monkeypatch.setattr(target, "read_original", lambda sock: where)
    return where


def enclave_end(header=Header.AUTO, **options):
    return Service(Mode.IP_TO_VSOCK_TRANSPARENT, TCP, Endpoint(HOST_END), header=header, **options)


@pytest.mark.parametrize("header", list(Header))
def test_our_two_ends_together(web, diverted, header):
    with running(host_end()), running(enclave_end(header)) as enclave, dial(enclave.addresses[0]) as client:
        client.sendall(b"hello")
        upstream, _ = web.accept()
        with upstream:
            assert read_exactly(upstream, 5) == b"hello"
            upstream.sendall(b"back")
            assert read_exactly(client, 4) == b"back"


def test_a_refused_destination_resets_the_client(web, diverted):
    web.close()
    with running(host_end()), running(enclave_end()) as enclave:
        assert_reset(enclave.addresses[0])
        assert enclave.totals.refused == 1


@pytest.mark.parametrize("header", [Header.AUTO, Header.V1])
def test_a_peer_of_the_rust_framework_gets_its_own_header(web, diverted, header):
    """It closes on a marker that it does not know; then, and from then on, it is spoken to in its own way."""
    wire = bytes([4, 1, 0, 0, 127]) + struct.pack("<H", diverted.port)
    with Listener(HOST_END) as rust, running(enclave_end(header)) as enclave:
        rust.socket.settimeout(PATIENCE_S)
        for round_number in range(2):
            with dial(enclave.addresses[0]) as client:
                client.sendall(b"hello")
                peer, _ = rust.accept()
                if header is Header.AUTO and round_number == 0:
                    assert read_exactly(peer, 1) == b"\xe5"
                    peer.close()
                    peer, _ = rust.accept()
                assert read_exactly(peer, 12) == wire + b"hello"
                peer.close()


def test_v2_does_without_what_is_not_answered(diverted):
    with Listener(HOST_END) as rust, running(enclave_end(Header.V2)) as enclave, dial(enclave.addresses[0]) as client:
        peer, _ = rust.accept()
        peer.close()
        with pytest.raises(ConnectionResetError):
            client.recv(1)


def test_the_request_names_the_client(diverted):
    with Listener(HOST_END) as listener, running(enclave_end()) as enclave, dial(enclave.addresses[0]) as client:
        peer, _ = listener.accept()
        with peer:
            request, _ = decode_request(peer.recv(1000))
            assert request.destination == diverted
            assert request.source == TcpAddress(*client.getsockname())


def test_a_connection_that_nothing_diverted_is_refused(web):
    """It would be told of itself, for ever."""
    with running(enclave_end()) as enclave:
        assert_reset(enclave.addresses[0])
        assert enclave.totals.refused == 1


def test_port_to_vsock_keeps_the_port(diverted):
    service = Service(Mode.TRANSPARENT_PORT_TO_VSOCK, TCP, Endpoint(VsockAddress(CID_PARENT, 0)))
    with Listener(VsockAddress(CID_PARENT, diverted.port)) as listener, running(service) as server:
        client = dial(server.addresses[0])
        peer, _ = listener.accept()
        with client, peer:
            client.sendall(b"x")
            assert read_exactly(peer, 1) == b"x"


@pytest.fixture
def free_range():
    """Two neighbouring free ports."""
    while True:
        with socket.create_server(("127.0.0.1", 0)) as one:
            port = one.getsockname()[1]
            try:
                socket.create_server(("127.0.0.1", port + 1)).close()
            except OSError:
                continue
        return port


def test_a_range_of_ports_is_one_listener(free_range):
    service = Service(
        Mode.IP_TO_VSOCK,
        Endpoint(TcpAddress("127.0.0.1", free_range), 2),
        Endpoint(VsockAddress(CID_PARENT, 7000), 2),
        limits=Limits(max_connections=1),
    )
    zero, one = (Listener(VsockAddress(CID_PARENT, port)) for port in (7000, 7001))
    with zero, one, running(service) as server:
        for listener, address in zip((zero, one), server.addresses, strict=True):
            listener.socket.settimeout(PATIENCE_S)
            with dial(address) as client:
                peer, _ = listener.accept()
                with peer:
                    client.sendall(b"x")
                    assert read_exactly(peer, 1) == b"x"
        assert server.totals.accepted == 2  # one at a time: the limit is the range's


def numbers_of(server):
    return {connection.number for connection in server.connections()}


@pytest.mark.parametrize("header", [Header.V2, Header.V1])
def test_a_connection_has_one_id_at_both_transparent_ends(web, diverted, header):
    with running(host_end()) as host, running(enclave_end(header)) as enclave, dial(enclave.addresses[0]) as client:
        client.sendall(b"x")
        app, _ = web.accept()
        with app:
            assert read_exactly(app, 1) == b"x"
            assert (numbers_of(host) == numbers_of(enclave)) == (header is Header.V2)  # the first has no room for it


def test_a_connection_has_one_id_at_both_plain_ends_with_proxy_headers(web):
    there = Endpoint(TcpAddress("127.0.0.1", web.getsockname()[1]))
    inside = Service(Mode.VSOCK_TO_IP, Endpoint(HOST_END), there, accept_proxy=True)
    outside = Service(Mode.IP_TO_VSOCK, TCP, Endpoint(HOST_END), send_proxy=2)
    with running(inside) as one, running(outside) as other, dial(other.addresses[0]) as client:
        client.sendall(b"x")
        app, _ = web.accept()
        with app:
            assert read_exactly(app, 1) == b"x"
            assert numbers_of(one) == numbers_of(other) != set()


@pytest.mark.parametrize("version", [1, 2])
def test_proxy_headers_carry_the_source(version):
    service = Service(Mode.IP_TO_VSOCK, TCP, Endpoint(HOST_END), send_proxy=version)
    with Listener(HOST_END) as listener, running(service) as server, dial(server.addresses[0]) as client:
        client.sendall(b"stream")
        peer, _ = listener.accept()
        with peer:
            wanted = Proxied(TcpAddress(*client.getsockname()), server.addresses[0])
            size = len((encode_v1 if version == 1 else encode_v2)(replace(wanted, connection_id=0)))
            found, used = decode_proxied(read_exactly(peer, size))
            assert (replace(found, connection_id=None), used) == (wanted, size)
            assert (found.connection_id is not None) == (version == 2)
            assert read_exactly(peer, 6) == b"stream"


def test_proxy_headers_go_from_end_to_end(web):
    """Load balancer, host end, enclave end, app: the app learns who connected to the load balancer."""
    said = Proxied(TcpAddress("203.0.113.9", 1234), TcpAddress("198.51.100.1", 443))
    port = web.getsockname()[1]
    host = Service(Mode.IP_TO_VSOCK, TCP, Endpoint(HOST_END), accept_proxy=True, send_proxy=2)
    enclave = Service(
        Mode.VSOCK_TO_IP,
        Endpoint(VsockAddress(CID_ANY, 8888)),
        Endpoint(TcpAddress("127.0.0.1", port)),
        accept_proxy=True,
        send_proxy=1,
    )
    with running(enclave), running(host) as server, dial(server.addresses[0]) as client:
        client.sendall(encode_v1(said) + b"stream")
        app, _ = web.accept()
        with app:
            assert read_exactly(app, len(encode_v1(said)) + 6) == encode_v1(said) + b"stream"


def test_who_does_not_begin_with_a_proxy_header_is_refused(web):
    host = Service(Mode.IP_TO_VSOCK, TCP, Endpoint(HOST_END), accept_proxy=True)
    with running(host) as server:
        assert_reset(server.addresses[0], b"GET / HTTP/1.1\r\n\r\n")


def test_one_cid_cannot_take_all(web):
    limits = Limits(max_per_cid=2)
    service = Service(
        Mode.VSOCK_TO_IP,
        Endpoint(VsockAddress(CID_ANY, 8888)),
        Endpoint(TcpAddress("127.0.0.1", web.getsockname()[1])),
        limits=limits,
    )
    with running(service) as server:
        kept = [dial(HOST_END) for _ in range(2)]
        served = [web.accept()[0] for _ in range(2)]
        with dial(HOST_END) as third:
            assert third.recv(1) == b""
        assert server.totals.refused == 1
        for sock in (kept[0], served[0], served[1]):
            sock.close()
        assert kept[1].recv(1) == b""  # it has ended, so there is room again
        kept[1].close()
        with dial(HOST_END) as fourth:
            again, _ = web.accept()
            fourth.sendall(b"x")
            assert read_exactly(again, 1) == b"x"
            again.close()


def test_a_half_closed_connection_has_its_own_patience(web):
    limits = Limits(half_close_timeout_s=0.2)
    service = Service(Mode.IP_TO_VSOCK, TCP, Endpoint(HOST_END), limits=limits)
    with Listener(HOST_END) as listener, running(service) as server, dial(server.addresses[0]) as client:
        peer, _ = listener.accept()
        with peer:
            client.shutdown(socket.SHUT_WR)
            with pytest.raises(ConnectionResetError):
                client.recv(1)


@pytest.mark.root
def test_diverted_connections_are_told_by_their_first_destination():
    """nftables sends them here, both kinds of IP; a dual-stack listener takes both."""
    if os.geteuid() or not all(map(shutil.which, ("unshare", "ip", "nft"))):
        pytest.skip("needs root, unshare, ip and nft")
    script = Path(__file__).with_name("diverted_in_namespace.py")
    argv = ["unshare", "-n", sys.executable, str(script)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.split() == ["tcp://192.0.2.7:443", "tcp://[2001:db8::7]:443"], done.stderr
