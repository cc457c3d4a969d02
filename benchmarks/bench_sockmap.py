# SPDX-License-Identifier: Apache-2.0
"""Why pf-proxy has no BPF sockmap: what it would gain, and what a slow reader would cost.

A round trip through two sockets joined in the kernel is nearly a direct one. But the redirection takes buffers from the
sender's queue at once and queues them at the other socket without a bound, so the sender's window never closes: as
long as the reader waits, kernel memory grows.
"""

from __future__ import annotations

import os
import select
import socket
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from enclavekit_core import fabric
from enclavekit_core.streams import connect
from relay_load import trips_us
from relay_peers import fabric_path, ours
from run import Figure
from sockmap import Sockmap

MAX_BYTES = 256 * 2**20  # enough to tell a bound from none
STALLED_S = 2.0  # no byte taken for so long: the sender waits
TRIPS = 3000
PIECE = bytes(2**20)

Pair = tuple[socket.socket, socket.socket]


def measure() -> Iterator[Figure]:
    ways = {"direct": direct, "pf-proxy": through_ours}
    try:
        Sockmap().close()
        ways["BPF sockmap"] = through_sockmap
    except OSError as exc:
        print(f"no sockmap here: {exc}")
    trips, taken = {}, {}
    for name, way in ways.items():
        with way() as (client, server):
            trips[name] = round_trip_us(client, server)
        with way() as (client, _server):
            taken[name] = taken_unread(client) / 2**20
    for name, value in trips.items():
        yield Figure(f"sockmap: 64 bytes and back, {name}", value, "us")
    for name, value in taken.items():
        yield Figure(f"sockmap: taken while nobody reads, {name}", value, "MiB", target=f"well under {MAX_BYTES >> 20}")


def round_trip_us(client: socket.socket, server: socket.socket) -> float:
    child = os.fork()
    if not child:
        while data := server.recv(4096):
            server.sendall(data)
        os._exit(0)
    times = trips_us(client, TRIPS)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return statistics.median(times)


def taken_unread(client: socket.socket) -> int:
    """Return how many bytes a sender is rid of, up to MAX_BYTES, if the other end reads none."""
    client.setblocking(False)
    sent = 0
    while sent < MAX_BYTES and select.select([], [client], [], STALLED_S)[1]:
        try:
            sent += client.send(PIECE)
        except BlockingIOError:
            pass
    return sent


def accepted() -> Pair:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        return client, listener.accept()[0]


@contextmanager
def direct() -> Iterator[Pair]:
    client, server = accepted()
    with client, server:
        yield client, server


@contextmanager
def through_sockmap() -> Iterator[Pair]:
    (client, near), (far, server) = accepted(), accepted()
    joined = Sockmap()
    with client, near, far, server:
        joined.join(near, far)
        yield client, server
    joined.close()


@contextmanager
def through_ours() -> Iterator[Pair]:
    with tempfile.TemporaryDirectory(prefix="enclavekit-bench-") as directory:
        os.environ[fabric.RUNTIME_DIR_VARIABLE] = os.path.join(directory, "rt")
        try:
            path = fabric_path(7000)
            with socket.socket(socket.AF_UNIX) as listener, ours(path, directory) as (address, _):
                listener.bind(path)
                listener.listen()
                client = connect(address)
                server, _name = listener.accept()
                with client, server:
                    yield client, server
        finally:
            del os.environ[fabric.RUNTIME_DIR_VARIABLE]
