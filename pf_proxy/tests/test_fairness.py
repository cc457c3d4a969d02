# SPDX-License-Identifier: Apache-2.0
"""Nobody is starved: of accepting, of turns in the loop, of descriptors or of pipes. The loop goes round by hand here,
so that what a round does can be counted."""

import fcntl
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack

import pytest
from enclavekit_core.address import CID_PARENT, TcpAddress, VsockAddress
from enclavekit_core.streams import Listener, connect
from enclavekit_pf_proxy import frontend
from enclavekit_pf_proxy.limits import LARGE_PIPES
from enclavekit_pf_proxy.loop import Loop
from enclavekit_pf_proxy.pipes import PipePool
from enclavekit_pf_proxy.server import Server
from enclavekit_pf_proxy.service import Endpoint, Mode, Service

from .test_run import START
from .test_server import FailingListener

PATIENCE_S = 20.0
TCP = TcpAddress("127.0.0.1", 0)
VSOCK = VsockAddress(CID_PARENT, 7000)


@pytest.fixture
def serve():
    """Return a function that makes a server, which goes round only when told to."""
    with ExitStack() as stack:

        def make(*opened):
            server = Server(
                [(Service(Mode.IP_TO_VSOCK, Endpoint(TCP), Endpoint(VSOCK)), [(0, listener)]) for listener in opened]
            )
            stack.callback(server.run)
            stack.callback(server.stop)
            stack.callback(server.stop)
            return server

        yield make


def go_round(server, times=1):
    for _ in range(times):
        server.loop.run_round(time.monotonic())


def test_a_flood_on_one_listener_does_not_hold_up_another(serve):
    with Listener(VSOCK, backlog=1024), ExitStack() as clients:
        server = serve(Listener(TCP, backlog=1024), Listener(TCP))
        flooded, quiet = server.frontends
        for address in [flooded.address] * (2 * frontend.MAX_ACCEPTS) + [quiet.address]:
            clients.enter_context(connect(address))
        go_round(server)
        assert (flooded.totals.accepted, quiet.totals.accepted) == (frontend.MAX_ACCEPTS, 1)


def test_without_descriptors_accepting_pauses(serve, monkeypatch):
    monkeypatch.setattr(frontend, "ACCEPT_PAUSE_S", 3600.0)
    listener = FailingListener(TCP)
    listener.failures = sys.maxsize
    server = serve(listener)
    with connect(listener.bound_address):
        go_round(server, 50)
        assert listener.calls == 1
        server.frontends[0].expire(time.monotonic() + 2 * 3600.0)
        go_round(server, 50)
        assert listener.calls == 2


def test_a_process_without_descriptors_goes_on_when_it_has_some():
    argv = [sys.executable, "-c", START, "ip-to-vsock", "-i", "127.0.0.1:0", "-v", "parent:7000", "--print-address"]
    with (
        Listener(VSOCK) as upstream,
        subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process,
    ):
        try:
            port = int(process.stdout.readline().rpartition(":")[2])
            limits = resource.prlimit(process.pid, resource.RLIMIT_NOFILE)
            taken = len(os.listdir(f"/proc/{process.pid}/fd"))
            resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (taken, limits[1]))
            with socket.create_connection(("127.0.0.1", port)) as client:
                client.settimeout(PATIENCE_S)
                while "cannot accept" not in process.stderr.readline():
                    assert process.poll() is None
                resource.prlimit(process.pid, resource.RLIMIT_NOFILE, limits)
                upstream.socket.settimeout(PATIENCE_S)
                peer, _ = upstream.accept()
                with peer:
                    client.sendall(b"x")
                    assert peer.recv(1) == b"x"
        finally:
            process.send_signal(signal.SIGTERM)


class Recorder:
    """A task that is woken by a byte and notes its turns."""

    def __init__(self, loop, turns, name, *, heavy):
        self.turns, self.name, self.heavy = turns, name, heavy
        self.sock, self.waker = socket.socketpair()
        loop.watch(self.sock.fileno(), self, 0, select.EPOLLIN | select.EPOLLET)

    def notice(self, index, mask):
        return self.heavy

    def run(self, now):
        self.turns.append(self.name)
        return self.heavy

    def expire(self, now):
        return None


def test_a_message_waits_for_one_bulk_turn_at_the_most():
    loop, turns = Loop(), []
    bulk = [Recorder(loop, turns, number, heavy=True) for number in range(3)]
    message = Recorder(loop, turns, "message", heavy=False)
    for one in bulk:
        one.waker.send(b"x")
    loop.run_round(time.monotonic())
    assert turns == [0]
    message.waker.send(b"x")
    for _ in range(3):
        loop.run_round(time.monotonic())
    assert turns == [0, "message", 1, 2, 0]  # and bulk tasks take turns
    for one in (*bulk, message):
        one.sock.close()
        one.waker.close()
    loop.close()


class PipeHolder:
    def __init__(self, pool):
        self.pool, self.pipe = pool, pool.lend(self)

    def give_up_pipe(self):
        self.pool.take_back(self.pipe, self, empty=True)
        self.pipe = None


def test_pipes_of_those_that_rest_are_lent_on():
    pool = PipePool(max_pipes=2)
    first, second = PipeHolder(pool), PipeHolder(pool)
    assert first.pipe and second.pipe
    assert pool.lend(object()) is None  # both are in use
    pool.rest(second)
    pool.rest(first)
    pool.wake(second)
    third = PipeHolder(pool)
    assert third.pipe and second.pipe and not first.pipe
    for holder in (second, third):
        holder.give_up_pipe()
    pool.close()


def test_pipes_are_large_while_they_are_few():
    pool = PipePool(LARGE_PIPES + 1)
    holders = [PipeHolder(pool) for _ in range(LARGE_PIPES + 1)]
    first, last = (fcntl.fcntl(holder.pipe[0], fcntl.F_GETPIPE_SZ) for holder in (holders[0], holders[-1]))
    assert first > last
    for holder in holders:
        holder.give_up_pipe()
    pool.close()
