# SPDX-License-Identifier: Apache-2.0
"""Why pf-proxy has no BPF sockmap: what it would gain, and what a slow reader would cost.

Round trips between a TCP client and a server behind a Unix socket: past proxies, past a bare loop that copies, and
where the kernel carries the answers or both ways. Then how much a sender is rid of while nobody reads, by the kind of
socket that a verdict program is on and by what it decides; for vsock in a virtual machine.
"""

from __future__ import annotations

import os
import select
import shutil
import socket
import statistics
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial

from enclavekit_core import fabric
from enclavekit_core.streams import connect
from relay_load import trips_us
from relay_peers import fabric_path, haproxy, ours
from run import Figure
from sockmap import MAX_TAKEN, WAYS, Direction, Pair, taken_each_way, taken_unread, tcp_pair

TRIPS, REPEATS = 3000, 3
BUFFER = 16 * 1024
FIRST = b"e"


def measure() -> Iterator[Figure]:
    try:
        with socket.socketpair()[0] as probe:
            Direction(probe).close()
    except OSError as exc:
        print(f"no sockmap here: {exc}")
        return
    with tempfile.TemporaryDirectory(prefix="enclavekit-bench-") as directory:
        os.environ[fabric.RUNTIME_DIR_VARIABLE] = os.path.join(directory, "rt")
        try:
            yield from compare_trips(directory)
            with behind(ours, directory) as (client, _server):
                taken = taken_unread(client) / 2**20
                yield Figure("sockmap: unread, pf-proxy", taken, "MiB", target=f"well under {MAX_TAKEN >> 20}")
        finally:
            del os.environ[fabric.RUNTIME_DIR_VARIABLE]
    for kind, pair in {"TCP": tcp_pair, "Unix": socket.socketpair}.items():
        for way, taken in zip(WAYS, taken_each_way(pair), strict=True):
            yield taken_figure(kind, way, taken)
    if shutil.which("qemu-system-x86_64") is None:
        print("no QEMU: nothing about vsock")
        return
    from sockmap_guest import taken_from_vsock

    release, found = taken_from_vsock()
    print(f"vsock: Linux {release} in a virtual machine")
    for way, taken in zip(WAYS, found, strict=True):
        yield taken_figure("vsock", way, taken)


def taken_figure(kind: str, way: str, taken: int) -> Figure:
    return Figure(f"sockmap: unread, {kind}, {way}", taken / 2**20, "MiB")


def compare_trips(directory: str) -> Iterator[Figure]:
    """The ways take turns, REPEATS times; the best of each counts, as load only ever makes it worse."""
    ways: dict[str, Callable[[], AbstractContextManager[Pair]]] = {"no proxy": direct}
    ways["pf-proxy"] = partial(behind, ours, directory)
    if shutil.which("haproxy"):
        ways["HAProxy"] = partial(behind, haproxy, directory)
    ways["a loop that copies"] = partial(copied, answers=False)
    ways["answers in the kernel"] = partial(copied, answers=True)
    ways["both ways in the kernel"] = joined
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(REPEATS):
        for name, way in ways.items():
            with way() as (client, server):
                times[name].append(round_trip_us(client, server))
    for name, found in times.items():
        yield Figure(f"sockmap: trip, {name}", min(found), "us")


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


@contextmanager
def direct() -> Iterator[Pair]:
    client, server = socket.socketpair()
    with client, server:
        yield client, server


@contextmanager
def joined() -> Iterator[Pair]:
    (client, near), (far, server) = quick_pair(), socket.socketpair()
    with client, near, far, server:
        directions = [Direction(near, far), Direction(far, near)]
        yield client, server
    for direction in directions:
        direction.close()


@contextmanager
def copied(*, answers: bool) -> Iterator[Pair]:
    """A process between that does nothing but copy; `answers`: they take the way through the kernel."""
    (client, near), (far, server) = quick_pair(), socket.socketpair()
    with client, near, far, server:
        direction = Direction(far, near) if answers else None
        child = os.fork()
        if not child:
            client.close()
            copy({near.fileno(): (near, far), far.fileno(): (far, near)})
            os._exit(0)
        yield client, server
        os.kill(child, 9)
        os.waitpid(child, 0)
    if direction is not None:
        direction.close()


def copy(ways: dict[int, Pair]) -> None:
    buffer, epoll = memoryview(bytearray(BUFFER)), select.epoll()
    for fd in ways:
        epoll.register(fd, select.EPOLLIN | select.EPOLLET)
        os.set_blocking(fd, False)
    while True:
        for fd, _ in epoll.poll():
            source, sink = ways[fd]
            try:
                count = source.recv_into(buffer)
            except BlockingIOError:
                continue  # the kernel has carried it
            sink.sendall(buffer[:count])


def quick_pair() -> Pair:
    pair = tcp_pair()
    for sock in pair:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return pair


@contextmanager
def behind(start: Callable[..., AbstractContextManager], directory: str) -> Iterator[Pair]:
    """A proxy that `start` starts, a client before it and the end that it connects to."""
    path = fabric_path(7000)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        with start(path, directory) as (address, _), connect(address) as client:
            client.sendall(FIRST)
            while (server := listener.accept()[0]).recv(1) != FIRST:
                server.close()  # of who looked whether the proxy had started
            with server:
                yield client, server
    os.unlink(path)
