# SPDX-License-Identifier: Apache-2.0
"""Over loopback nothing is paced, whatever the machine's congestion control is."""

import socket

import pytest
from enclavekit_core.address import CID_PARENT, TcpAddress, VsockAddress
from enclavekit_core.streams import Listener, connect
from enclavekit_pf_proxy import ProxyServer
from enclavekit_pf_proxy.dialer import Dialer, connect_ip
from enclavekit_pf_proxy.wire.request import Protocol


def congestion_control(sock):
    return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0")


def test_what_is_accepted_on_loopback_is_not_paced():
    listener = Listener(TcpAddress("127.0.0.1", 0))
    server = ProxyServer(listener, VsockAddress(CID_PARENT, 7000))
    try:
        with connect(server.address):
            listener.socket.setblocking(True)
            with listener.socket.accept()[0] as accepted:
                assert congestion_control(accepted) == b"reno"
    finally:
        server.stop()
        server.run()


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8"])
def test_connections_to_loopback_are_not_paced(host):
    with Listener(TcpAddress(host, 0)) as listener:
        begun = Dialer(lambda: None).begin(listener.bound_address)
        with begun.sock, connect_ip(listener.bound_address, None, 10.0) as connected:
            assert congestion_control(begun.sock) == congestion_control(connected) == b"reno"


def test_datagrams_have_no_pacing_to_spare():
    begun = Dialer(lambda: None).begin(TcpAddress("127.0.0.1", 9), protocol=Protocol.UDP)
    with begun.sock:
        assert begun.connected
