# SPDX-License-Identifier: Apache-2.0
"""Real proxies in threads of the test, between real TCP and the vsock of a fabric of the test's own."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager

import pytest
from enclavekit_core import fabric
from enclavekit_core.address import CID_PARENT, TcpAddress, VsockAddress
from enclavekit_core.streams import Listener, connect
from enclavekit_pf_proxy import Limits, ProxyServer

PATIENCE_S = 20.0  # far more than anything here takes; only a hang ever waits so long


@pytest.fixture(autouse=True)
def runtime_dir(tmp_path, monkeypatch):
    monkeypatch.setenv(fabric.RUNTIME_DIR_VARIABLE, str(tmp_path / "rt"))
    monkeypatch.delenv(fabric.TRANSPORT_VARIABLE, raising=False)
    return fabric.ensure_runtime_dir()


@contextmanager
def in_thread(server):
    """Run it, and check that it ends."""
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.stop()
        server.stop()
        thread.join(PATIENCE_S)
        assert not thread.is_alive(), "the proxy did not stop"


@contextmanager
def outside(script, directory):
    """Run `script outside DIRECTORY` in a network namespace of its own, for as long as it has a standard input."""
    argv = ["unshare", "-n", sys.executable, str(script), "outside", str(directory)]
    pipe = subprocess.PIPE
    with subprocess.Popen(argv, stdin=pipe, stdout=pipe, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "ready\n"
            yield
        finally:
            process.stdin.close()
            process.wait(60)


@pytest.fixture
def run_proxy():
    """Return a context manager that runs a proxy and checks that it ends."""

    @contextmanager
    def run(listen, upstream, limits=None, **options):
        server = ProxyServer(Listener(listen), upstream, limits or Limits(), **options)
        with in_thread(server):
            yield server

    return run


@pytest.fixture(params=["ip-to-vsock", "vsock-to-ip"])
def ends(request):
    """An upstream listener of one kind and the address for a proxy of the other."""
    tcp, vsock = TcpAddress("127.0.0.1", 0), VsockAddress(CID_PARENT, 7000)
    listen, upstream = (tcp, vsock) if request.param == "ip-to-vsock" else (vsock, tcp)
    with Listener(upstream) as listener:
        listener.socket.settimeout(PATIENCE_S)
        yield listen, listener


@pytest.fixture
def relay_pair(ends, run_proxy):
    """Return a function that opens one connection through a proxy: (client, upstream side) sockets."""
    listen, listener = ends
    opened = []
    with run_proxy(listen, listener.bound_address) as server:

        def open_pair():
            client = connect(server.address)
            upstream, _ = listener.accept()
            for sock in (client, upstream):
                sock.settimeout(PATIENCE_S)
                opened.append(sock)
            return client, upstream

        open_pair.server = server
        yield open_pair
        for sock in opened:
            sock.close()


@pytest.fixture
def count_fds():
    def count():
        return len(os.listdir("/proc/self/fd"))

    return count


def read_all(sock: socket.socket) -> bytes:
    chunks = []
    while chunk := sock.recv(1 << 16):
        chunks.append(chunk)
    return b"".join(chunks)


@pytest.fixture(name="read_all")
def read_all_fixture():
    return read_all
