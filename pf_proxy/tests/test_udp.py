# SPDX-License-Identifier: Apache-2.0
"""UDP over vsock on loopback: pairs of real proxies, sessions, their limits and their ends."""

import os
import signal
import socket
import threading
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import pytest
from enclavekit_core.address import CID_ANY, CID_PARENT, TcpAddress, VsockAddress
from enclavekit_core.streams import Listener, connect
from enclavekit_pf_proxy import cli
from enclavekit_pf_proxy.destinations import DestinationRules, parse_range
from enclavekit_pf_proxy.limits import Limits
from enclavekit_pf_proxy.listeners import fit_listener, open_listener
from enclavekit_pf_proxy.server import Server
from enclavekit_pf_proxy.service import Endpoint, Mode, Service
from enclavekit_pf_proxy.status.describe import describe
from enclavekit_pf_proxy.udp import frontend, notices
from enclavekit_pf_proxy.udp.unreachable import tell_client
from enclavekit_pf_proxy.wire.datagrams import (
    MAX_DATAGRAM_BYTES,
    DatagramDecoder,
    Notice,
    encode_datagram,
    encode_notice,
)
from enclavekit_pf_proxy.wire.request import REPLY, Protocol, Request, Status, decode_reply, encode_request

from .conftest import in_thread
from .test_run import running as processes

PATIENCE_S = 20.0
HOST_END = VsockAddress(CID_PARENT, 8888)
LISTEN = Endpoint(TcpAddress("127.0.0.1", 0))
OUT = Service(Mode.IP_TO_VSOCK, LISTEN, Endpoint(HOST_END), protocol=Protocol.UDP)
ANYWHERE = DestinationRules((parse_range("127.0.0.0/8"), parse_range("::1")))
HOST = Service(Mode.VSOCK_TO_IP_TRANSPARENT, Endpoint(VsockAddress(CID_ANY, 8888)), None, destinations=ANYWHERE)


@contextmanager
def running(service):
    listener = open_listener(service, service.listen.first)
    fit_listener(listener, service)
    server = Server([(service, [(0, listener)])])
    with in_thread(server):
        yield server


def udp_socket(family=socket.AF_INET):
    sock = socket.socket(family, socket.SOCK_DGRAM)
    sock.settimeout(PATIENCE_S)
    sock.bind(("::1" if family == socket.AF_INET6 else "127.0.0.1", 0))
    return sock


@pytest.fixture
def echo():
    """A UDP server that answers each datagram with what it got, turned round."""
    with udp_socket() as server:

        def serve():
            while True:
                data, sender = server.recvfrom(MAX_DATAGRAM_BYTES)
                if data == b"stop":
                    return
                server.sendto(data[::-1], sender)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield server.getsockname()
        with udp_socket() as last:
            last.sendto(b"stop", server.getsockname())
        thread.join(PATIENCE_S)


@contextmanager
def client_of(server, count=1):
    with ExitStack() as stack:
        clients = [stack.enter_context(udp_socket()) for _ in range(count)]
        for sock in clients:
            sock.connect(("127.0.0.1", server.addresses[0].port))
        yield clients[0] if count == 1 else clients


def ask(sock, data):
    sock.send(data)
    return sock.recv(MAX_DATAGRAM_BYTES)


def into(target, **more):
    return Service(
        Mode.VSOCK_TO_IP, HOST.listen, Endpoint(TcpAddress(target[0], target[1])), protocol=Protocol.UDP, **more
    )


def test_datagrams_go_and_come_back_whole(echo):
    with running(into(echo)), running(OUT) as server, client_of(server) as client:
        for data in (b"ping", b"", bytes(1500), os.urandom(MAX_DATAGRAM_BYTES), b"x"):
            assert ask(client, data) == data[::-1]
    assert server.totals.accepted == 1
    assert server.totals.bytes_up >= MAX_DATAGRAM_BYTES


def test_each_client_has_its_session(echo):
    with running(into(echo)), running(OUT) as server, client_of(server, 20) as clients:
        for number, sock in enumerate(clients):
            sock.send(b"client %d" % number)
        for number, sock in enumerate(clients):
            assert sock.recv(100) == (b"client %d" % number)[::-1]
    assert server.totals.accepted == 20


def test_a_target_may_be_a_name(echo):
    with running(into(("localhost", echo[1]))), running(OUT) as server, client_of(server) as client:
        client.send(b"ping")
        assert client.recv(100) == b"gnip"


def test_a_burst_before_the_upstream_is_there_is_one_session(echo):
    with running(OUT) as server, client_of(server) as client, Listener(HOST_END) as listener:
        listener.socket.settimeout(PATIENCE_S)
        for number in range(10):
            client.send(b"%d" % number)
        peer, _ = listener.accept()
        peer.settimeout(PATIENCE_S)
        with peer:
            decoder, got = DatagramDecoder(), []
            while len(got) < 10:
                got += decoder.feed(peer.recv(4096))
            peer.sendall(encode_datagram(b"all"))
            assert client.recv(100) == b"all"
    assert got == [b"%d" % number for number in range(10)]
    assert server.totals.accepted == 1


@contextmanager
def asking(destination, host=HOST):
    """A stream to the host end, as the enclave's end makes it."""
    with running(host) as server, connect(HOST_END) as sock:
        sock.settimeout(PATIENCE_S)
        sock.sendall(encode_request(Request(7, TcpAddress(*destination), protocol=Protocol.UDP)))
        status = decode_reply(sock.recv(REPLY.size, socket.MSG_WAITALL))
        yield sock, status, server


def test_the_host_end_dials_udp_when_asked(echo):
    with asking(echo) as (sock, status, _):
        assert status is Status.CONNECTED
        sock.sendall(encode_datagram(b"ping") + encode_datagram(b"pong")[:3])
        assert sock.recv(6, socket.MSG_WAITALL) == encode_datagram(b"gnip")
        sock.sendall(encode_datagram(b"pong")[3:])
        assert sock.recv(6, socket.MSG_WAITALL) == encode_datagram(b"gnop")


def test_the_host_end_guards_its_own_network():
    for host in ("127.0.0.1", "169.254.169.254", "::ffff:127.0.0.1", "224.0.0.251", "255.255.255.255", "localhost"):
        with asking((host, 53), replace(HOST, destinations=DestinationRules())) as (sock, status, server):
            assert status is Status.DENIED
            assert sock.recv(1) == b""
            assert server.totals.refused == 1


def test_what_is_no_datagram_ends_the_session(echo):
    with asking(echo) as (sock, _, _):
        sock.sendall(b"\xff\xfe")
        assert sock.recv(1) == b""


def test_nobody_at_the_target_is_told_and_loses_no_session():
    with udp_socket() as target, asking(target.getsockname()) as (sock, status, _):
        where = target.getsockname()
        assert status is Status.CONNECTED
        target.close()
        decoder, got = DatagramDecoder(), []
        sock.sendall(encode_datagram(b"lost"))
        while not got:
            got += decoder.feed(sock.recv(100))
        assert got == [Notice(Status.REFUSED)]
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as late:
            late.settimeout(PATIENCE_S)
            late.bind(where)
            sock.sendall(encode_datagram(b"found"))
            data, sender = late.recvfrom(100)
            late.sendto(data, sender)
            while got[-1] != b"found":
                got += decoder.feed(sock.recv(100))


@pytest.mark.root
def test_a_client_is_told_by_icmp(accepted, monkeypatch):
    """Of a notice, and of a session that cannot begin; a peer that sends nothing but notices sends few on."""
    if os.geteuid():
        pytest.skip("needs root")
    told = []
    monkeypatch.setattr(notices, "NOTICE_S", 1000.0)
    monkeypatch.setattr(notices, "tell_client", lambda *told_of: told.append(told_of) or tell_client(*told_of))
    for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        with running(replace(OUT, listen=Endpoint(TcpAddress(host, 0)))) as server, udp_socket(family) as client:
            client.connect((host, server.addresses[0].port))
            client.send(b"x")
            peer = accepted()
            assert peer.recv(3, socket.MSG_WAITALL) == encode_datagram(b"x")
            peer.sendall(encode_notice(99) + 50 * encode_notice(Status.REFUSED))
            with pytest.raises(ConnectionRefusedError):
                client.recv(100)
            peer.sendall(encode_datagram(b"y"))
            assert client.recv(100) == b"y"
    assert len(told) == 2


def test_without_the_right_nobody_is_told():
    client = TcpAddress("127.0.0.1", 7)
    assert not tell_client(client, TcpAddress("::1", 7), Status.REFUSED)
    assert not tell_client(client, client, Status.BUSY)


def test_a_stream_that_ends_ends_its_session_and_the_next_datagram_begins_another():
    with running(OUT) as server, client_of(server) as client, Listener(HOST_END) as listener:
        listener.socket.settimeout(PATIENCE_S)
        client.send(b"one")
        first, _ = listener.accept()
        with first:
            assert first.recv(5, socket.MSG_WAITALL) == encode_datagram(b"one")
        listener.socket.settimeout(0.05)
        while True:  # those that come in before the end is seen go with the session
            client.send(b"two")
            try:
                second, _ = listener.accept()
                break
            except TimeoutError:
                continue
        with second:
            assert second.recv(5, socket.MSG_WAITALL) == encode_datagram(b"two")


def test_a_quiet_session_ends(echo):
    limits = Limits(udp_idle_timeout_s=0.2)
    with running(replace(OUT, limits=limits)) as server, Listener(HOST_END) as listener, client_of(server) as client:
        listener.socket.settimeout(PATIENCE_S)
        client.send(b"one")
        peer, _ = listener.accept()
        with peer:
            peer.settimeout(PATIENCE_S)
            assert peer.recv(5, socket.MSG_WAITALL) == encode_datagram(b"one")
            assert peer.recv(1) == b""


@pytest.fixture
def accepted():
    """A host end of the test's own, and a function that returns the next session's stream."""
    with ExitStack() as stack:
        listener = stack.enter_context(Listener(HOST_END))
        listener.socket.settimeout(PATIENCE_S)

        def accept():
            peer, _ = listener.accept()
            peer.settimeout(PATIENCE_S)
            return stack.enter_context(peer)

        yield accept


@pytest.mark.parametrize("limits", [Limits(max_connections=2), Limits(max_per_source=2)])
def test_a_session_at_the_limit_takes_the_place_of_the_quietest(limits, accepted, monkeypatch):
    monkeypatch.setattr(frontend, "EVICTABLE_S", 0.0)
    with running(replace(OUT, limits=limits)) as server, client_of(server, 3) as clients:
        peers = []
        for number, sock in enumerate(clients):
            sock.send(b"%d" % number)
            peers.append(accepted())
            assert peers[-1].recv(3, socket.MSG_WAITALL) == encode_datagram(b"%d" % number)
        assert peers[0].recv(1) == b""
        clients[1].send(b"!")
        assert peers[1].recv(3, socket.MSG_WAITALL) == encode_datagram(b"!")


@pytest.mark.parametrize("limits", [Limits(max_connections=2), Limits(max_per_source=2)])
def test_no_busy_session_gives_way(limits, accepted, monkeypatch):
    monkeypatch.setattr(frontend, "EVICTABLE_S", 1000.0)
    with running(replace(OUT, limits=limits)) as server, client_of(server, 3) as clients:
        peers = []
        for sock in clients[:2]:
            sock.send(b"x")
            peers.append(accepted())
            assert peers[-1].recv(3, socket.MSG_WAITALL) == encode_datagram(b"x")
        clients[2].send(b"lost")
        for sock, peer in zip(clients, peers, strict=False):
            sock.send(b"y")
            assert peer.recv(3, socket.MSG_WAITALL) == encode_datagram(b"y")
        assert server.totals.accepted == 2


def test_a_refused_session_is_not_tried_again_for_each_datagram(monkeypatch):
    monkeypatch.setattr(frontend, "REFUSED_S", 1000.0)
    with running(OUT) as server, client_of(server, 2) as (refused, other):
        refused.send(b"x")
        while not server.totals.refused:
            pass
        with Listener(HOST_END) as listener:
            listener.socket.settimeout(PATIENCE_S)
            told = 0
            for _ in range(51):
                try:
                    refused.send(b"x")
                except ConnectionRefusedError:  # in place of one of them, where the proxy may say it
                    told += 1
            other.send(b"y")  # once this one comes through, those before it were looked at
            listener.accept()[0].close()
        assert (server.totals.accepted, server.totals.refused, server.totals.dropped) == (2, 1, 51 - told)
        (said,) = describe(server, with_connections=False).listeners
        assert (said.dropped, said.listen) == (51 - told, f"udp://127.0.0.1:{server.addresses[0].port}")


def test_longer_datagrams_than_allowed_are_dropped(accepted):
    limits = Limits(max_datagram_bytes=100)
    with running(replace(OUT, limits=limits)) as server, client_of(server) as client:
        client.send(b"first")
        peer = accepted()
        assert peer.recv(7, socket.MSG_WAITALL) == encode_datagram(b"first")
        client.send(bytes(101))
        client.send(b"fits")
        assert peer.recv(6, socket.MSG_WAITALL) == encode_datagram(b"fits")
        peer.sendall(encode_datagram(bytes(101)) + encode_datagram(b"fits"))
        assert client.recv(200) == b"fits"


def test_a_stream_that_is_not_read_costs_datagrams_and_no_memory(accepted):
    limits = Limits(max_queued_bytes=64 * 1024)
    with running(replace(OUT, limits=limits)) as server, client_of(server) as client:
        client.send(b"first")
        peer = accepted()
        sent, payload = 0, bytes(1000)
        while sent < 5000:
            client.send(payload)
            sent += 1
        client.send(b"x")
        assert ask_late(client, peer) > 0
    assert server.totals.bytes_up < 5000 * 1000


def ask_late(client, peer):
    """Read the stream until it gives a datagram that is sent from now on; return how many came before."""
    decoder, count = DatagramDecoder(), 0
    while True:
        client.send(b"late")
        for datagram in decoder.feed(peer.recv(1 << 20)):
            if datagram == b"late":
                return count
            count += 1


def test_sessions_leave_no_descriptors(echo, count_fds):
    with running(into(echo)), running(OUT) as server, client_of(server) as client:
        assert ask(client, b"ping") == b"gnip"
    before = count_fds()
    for _ in range(3):
        with running(into(echo)), running(OUT) as server, client_of(server, 10) as clients:
            for sock in clients:
                assert ask(sock, b"ping") == b"gnip"
    assert count_fds() == before


def test_a_stopping_proxy_ends_quiet_sessions_soon(echo):
    service = replace(OUT, limits=Limits(udp_idle_timeout_s=0))
    server = Server([(service, [(0, open_listener(service, service.listen.first))])], drain_timeout_s=10 * PATIENCE_S)
    thread = threading.Thread(target=server.run, daemon=True)
    with running(into(echo)), client_of(server) as client:
        thread.start()
        assert ask(client, b"ping") == b"gnip"
        server.stop()
        thread.join(PATIENCE_S)
        assert not thread.is_alive()


def test_both_kinds_of_ip(echo):
    service = replace(OUT, listen=Endpoint(TcpAddress("::", 0)))
    with running(into(echo)), running(service) as server:
        for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
            with udp_socket(family) as client:
                client.connect((host, server.addresses[0].port))
                assert ask(client, b"ping") == b"gnip"


def test_both_ends_from_the_command_line(echo):
    inside = ("vsock-to-ip", "-v", "any:8888", "-i", f"127.0.0.1:{echo[1]}", "--udp")
    outside = ("ip-to-vsock", "-i", "127.0.0.1:0", "-v", "parent:8888", "--udp", "--max-per-source", "2")
    with processes(*inside), processes(*outside, "--workers", "2") as (_, (address,)), udp_socket() as client:
        client.connect(("127.0.0.1", address.port))
        assert ask(client, b"ping") == b"gnip"


@pytest.mark.parametrize(
    "argv",
    [
        ("ip-to-vsock-transparent", "-i", "127.0.0.1:1", "-v", "3:1", "--udp"),
        ("ip-to-vsock-transparent", "-i", "127.0.0.1:1", "-v", "3:1", "--udp", "--tproxy", "--header", "v1"),
        ("ip-to-vsock", "-i", "127.0.0.1:1", "-v", "3:1", "--udp", "--send-proxy", "v2"),
        ("ip-to-vsock", "-i", "127.0.0.1:1", "-v", "3:1", "--udp", "--max-per-source", "-1"),
        ("ip-to-vsock", "-i", "127.0.0.1:1", "-v", "3:1", "--udp", "--udp-idle-timeout", "nan"),
    ],
)
def test_command_lines_that_udp_cannot_use(argv, capsys):
    assert cli.main([*argv]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.root
def test_tproxy_listeners_have_other_machines_addresses():
    """What TPROXY rules need, which somebody else makes."""
    if os.geteuid():
        pytest.skip("needs root")
    tcp = Service(Mode.IP_TO_VSOCK_TRANSPARENT, LISTEN, Endpoint(HOST_END), tproxy=True)
    for service in (tcp, replace(tcp, protocol=Protocol.UDP), replace(tcp, listen=Endpoint(TcpAddress("::", 0)))):
        listener = open_listener(service, service.listen.first)
        fit_listener(listener, service)
        assert listener.socket.getsockopt(socket.SOL_IP, 19) == 1
        listener.close()


def test_a_reload_drops_no_session(tmp_path, echo):
    config = tmp_path / "proxy.yaml"
    text = "- {mode: ip-to-vsock, listen: '127.0.0.1:0', upstream: 'parent:8888', protocol: udp}\n"
    second = "- {mode: ip-to-vsock, listen: '127.0.0.1:0', upstream: 'parent:8889', protocol: udp, name: second}\n"
    config.write_text("workers: 2\nlisteners:\n" + text)
    with Listener(HOST_END) as listener, processes("run", str(config)) as (process, (address,)):
        listener.socket.settimeout(PATIENCE_S)
        with udp_socket() as old, udp_socket() as new:
            old.connect(("127.0.0.1", address.port))
            old.send(b"1")
            peer, _ = listener.accept()
            peer.settimeout(PATIENCE_S)
            with peer:
                assert peer.recv(3, socket.MSG_WAITALL) == encode_datagram(b"1")
                config.write_text("listeners:\n" + text + second)
                process.send_signal(signal.SIGHUP)
                process.wait_for("reloaded")
                for _ in range(20):
                    old.send(b"2")
                    assert peer.recv(3, socket.MSG_WAITALL) == encode_datagram(b"2")
                peer.sendall(encode_datagram(b"3"))
                assert old.recv(10) == b"3"
                new.connect(("127.0.0.1", address.port))
                new.send(b"4")
                other, _ = listener.accept()
                with other:
                    other.settimeout(PATIENCE_S)
                    assert other.recv(3, socket.MSG_WAITALL) == encode_datagram(b"4")
                old.send(b"5")
                assert peer.recv(3, socket.MSG_WAITALL) == encode_datagram(b"5")
