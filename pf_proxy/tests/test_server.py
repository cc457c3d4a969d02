# SPDX-License-Identifier: Apache-2.0
"""Limits, refusals and ends of the proxy itself."""

import errno
import os
import socket
import threading

import pytest
from enclavekit_core.address import CID_ANY, CID_PARENT, TcpAddress, VsockAddress
from enclavekit_core.errors import TransportError
from enclavekit_core.streams import Listener, connect
from enclavekit_pf_proxy import Limits, ProxyServer, relay
from enclavekit_pf_proxy.limits import connections_for, descriptors_for

PATIENCE_S = 20.0
TCP = TcpAddress("127.0.0.1", 0)
VSOCK = VsockAddress(CID_PARENT, 7000)


@pytest.fixture
def upstream():
    with Listener(VSOCK) as listener:
        listener.socket.settimeout(PATIENCE_S)
        yield listener


def open_client(server):
    client = connect(server.address)
    client.settimeout(PATIENCE_S)
    return client


def test_refused_upstream_resets_the_client_and_the_proxy_goes_on(run_proxy):
    with run_proxy(TCP, VSOCK) as server:
        for _ in range(3):
            # the reset may come before our own connect has returned
            with pytest.raises((ConnectionResetError, TransportError)) as caught, open_client(server) as client:
                client.recv(1)
            assert caught.value.errno == errno.ECONNRESET
        with Listener(VSOCK) as late, open_client(server) as client:
            sock, _ = late.accept()
            with sock:
                sock.sendall(b"now")
                assert client.recv(3) == b"now"
        assert server.totals.refused == 3


def test_refused_upstream_closes_a_vsock_client(run_proxy):
    with socket.create_server(("127.0.0.1", 0)) as probe:
        free = probe.getsockname()[1]
    with run_proxy(VSOCK, TcpAddress("127.0.0.1", free)) as server, open_client(server) as client:
        assert client.recv(1) == b""


def test_connections_over_the_limit_wait(run_proxy, upstream):
    with run_proxy(TCP, VSOCK, Limits(max_connections=2)) as server:
        first, second, third = (open_client(server) for _ in range(3))
        served = [upstream.accept()[0] for _ in range(2)]
        assert server.totals.accepted == 2
        served[0].close()
        first.close()
        second.close()
        third.sendall(b"my turn")
        late, _ = upstream.accept()
        late.settimeout(PATIENCE_S)
        assert late.recv(7) == b"my turn"
        for sock in (late, third, *served):
            sock.close()


def test_idle_connection_is_ended(run_proxy, upstream):
    with run_proxy(TCP, VSOCK, Limits(idle_timeout_s=0.3)) as server, open_client(server) as idle:
        sock, _ = upstream.accept()
        with sock, pytest.raises(ConnectionResetError):
            idle.recv(1)
        assert server.totals.refused == 0


def test_idle_timeout_of_zero_is_none(run_proxy, upstream):
    with run_proxy(TCP, VSOCK, Limits(idle_timeout_s=0)) as server, open_client(server) as client:
        sock, _ = upstream.accept()
        with sock:
            client.sendall(b"x")
            assert sock.recv(1) == b"x"


def test_allowed_cids(run_proxy, upstream):
    tcp = Listener(TCP)
    with tcp, run_proxy(VsockAddress(CID_ANY, 7001), tcp.bound_address, allowed_cids={16}) as server:
        client = connect(VsockAddress(CID_PARENT, 7001))
        client.settimeout(PATIENCE_S)
        assert client.recv(1) == b""
        client.close()
        assert server.totals.refused == 1
    with tcp, run_proxy(VsockAddress(CID_ANY, 7001), upstream.bound_address, allowed_cids={CID_PARENT}):
        client = connect(VsockAddress(CID_PARENT, 7001))
        sock, _ = upstream.accept()
        client.sendall(b"x")
        assert sock.recv(1) == b"x"
        client.close()
        sock.close()


def test_stop_lets_running_connections_end(upstream):
    server = ProxyServer(Listener(TCP), VSOCK, Limits(drain_timeout_s=PATIENCE_S))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    client = open_client(server)
    sock, _ = upstream.accept()
    client.sendall(b"x")
    assert sock.recv(1) == b"x"
    server.stop()
    sock.sendall(b"still here")
    assert client.recv(10) == b"still here"
    client.close()
    sock.close()
    thread.join(PATIENCE_S)
    assert not thread.is_alive()
    with pytest.raises(TransportError):
        connect(server.address)


def test_stop_ends_stuck_connections_after_the_drain_timeout(upstream):
    server = ProxyServer(Listener(TCP), VSOCK, Limits(drain_timeout_s=0.1))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    with open_client(server) as client:
        sock, _ = upstream.accept()
        client.sendall(b"x")
        sock.recv(1)
        server.stop()
        with pytest.raises(ConnectionResetError):
            client.recv(1)
        sock.close()
    thread.join(PATIENCE_S)
    assert not thread.is_alive()


class FailingListener(Listener):
    """Fails to accept as the kernel does when descriptors are short, `failures` times."""

    failures = 3
    calls = 0

    def accept(self):
        self.calls += 1
        if self.calls <= self.failures:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return super().accept()


def test_accept_errors_pause_instead_of_spinning(upstream):
    listener = FailingListener(TCP)
    server = ProxyServer(listener, VSOCK)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    with open_client(server) as client:
        sock, _ = upstream.accept()
        sock.sendall(b"x")
        assert client.recv(1) == b"x"
        # 3 failures, 1 connection, and at most a few empty looks: a spin would have made thousands
        assert listener.calls < 10
        sock.close()
    server.stop()
    thread.join(PATIENCE_S)
    assert not thread.is_alive()


def test_connections_that_fit_the_descriptors():
    assert connections_for(1000, descriptors_for(1000)) == 1000
    assert connections_for(1000, descriptors_for(1000) - 1) == 999
    assert connections_for(1000, 10) == 1


@pytest.mark.parametrize("listen", [TCP, VSOCK], ids=["client is TCP", "upstream is TCP"])
def test_tcp_ends_delay_nothing_and_are_kept_alive(run_proxy, monkeypatch, listen):
    """As the relay sees its sockets: one of the two ends is TCP in either mode."""
    seen = []
    original = relay.Relay.__init__

    def watch(self, client, upstream, *rest):
        for sock in (client, upstream):
            if sock.family == socket.AF_INET:
                options = ((socket.IPPROTO_TCP, socket.TCP_NODELAY), (socket.SOL_SOCKET, socket.SO_KEEPALIVE))
                idle = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE)
                seen.append((sock.getblocking(), *(bool(sock.getsockopt(*option)) for option in options), idle))
        original(self, client, upstream, *rest)

    monkeypatch.setattr(relay.Relay, "__init__", watch)
    other = VSOCK if listen is TCP else TCP
    with Listener(other) as upstream, run_proxy(listen, upstream.bound_address, Limits(keepalive_s=77)) as server:
        client = open_client(server)
        sock, _ = upstream.accept()
        with client, sock:
            client.sendall(b"x")
            assert sock.recv(1) == b"x"
    assert seen == [(False, True, True, 77)]
