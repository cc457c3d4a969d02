# SPDX-License-Identifier: Apache-2.0
"""Proxies with many connections, and with Redis behind two of them: what bench_relay measures beside single streams."""

from __future__ import annotations

import csv
import os
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from enclavekit_core.address import TcpAddress, UnixAddress
from enclavekit_core.errors import TransportError
from enclavekit_core.streams import connect
from relay_peers import HAPROXY_BACK, fabric_path, free_port, haproxy, ours, socat, started
from run import Figure

BUSY, IDLE = 1000, 10_000
PERIOD_S = 0.5  # each busy connection sends a message so often: 2000 messages/s together, far below saturation
TRIPS = 3000
MESSAGE = bytes(64)
REDIS_REQUESTS, REDIS_CLIENTS = 60_000, 50
# one thread, so that what is measured is the proxy and not a thousand threads of Python
ECHO = """
import select, socket, sys
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen(4096)
listener.setblocking(False)
epoll, socks = select.epoll(), {}
epoll.register(listener.fileno(), select.EPOLLIN)
print("ready", flush=True)
while True:
    for fd, mask in epoll.poll():
        if fd == listener.fileno():
            try:
                sock, _ = listener.accept()
            except BlockingIOError:
                continue
            socks[sock.fileno()] = sock
            epoll.register(sock.fileno(), select.EPOLLIN)
            continue
        try:
            data = socks[fd].recv(4096)
            socks[fd].send(data)
        except OSError:
            data = b""
        if not data:
            socks.pop(fd).close()
"""
# connections that send a message in turn, evenly over PERIOD_S; says "ready" once all have had an answer
DRIVER = """
import select, socket, sys, time
count, period, idle = int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])
host, _, port = sys.argv[1].rpartition(":")
address = (host, int(port))
message = bytes(64)
def open_all(count):
    socks = [socket.create_connection(address) for _ in range(count)]
    for sock in socks:
        sock.sendall(message)
        sock.recv(64, socket.MSG_WAITALL)
        sock.setblocking(False)
    return socks
resting, busy = open_all(idle), open_all(count)
epoll = select.epoll()
by_fd = {sock.fileno(): sock for sock in busy}
for fd in by_fd:
    epoll.register(fd, select.EPOLLIN)
print("ready", flush=True)
sent, started = 0, time.monotonic()
while True:
    due = int((time.monotonic() - started) / period * count)
    while sent < due:
        busy[sent % count].send(message)
        sent += 1
    for fd, _ in epoll.poll(period / count):
        by_fd[fd].recv(4096)
"""


@contextmanager
def echo_server(path: str) -> Iterator[None]:
    with running([sys.executable, "-c", ECHO, path]):
        yield


@contextmanager
def running(argv: list[str]) -> Iterator[subprocess.Popen[str]]:
    """Run a program that says when it is ready."""
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            if not process.stdout.readline():
                raise RuntimeError(f"{argv[0]} did not start")
            yield process
        finally:
            process.kill()


def p99_us(address: Any) -> float:
    with connect(address) as sock:
        return statistics.quantiles(trips_us(sock, TRIPS), n=100)[98]


def trips_us(sock: socket.socket, count: int) -> list[float]:
    times = []
    for _ in range(count):
        started_at = time.perf_counter()
        sock.sendall(MESSAGE)
        sock.recv(len(MESSAGE), socket.MSG_WAITALL)
        times.append((time.perf_counter() - started_at) * 1e6)
    return times


def compare_load(starts: dict[str, Callable[..., Any]], directory: str, idle: int) -> Iterator[Figure]:
    """p99 of a small request with nobody else, and with BUSY connections at work and `idle` at rest.

    Proxies take turns in pairs of the two; the smallest of three counts, as other load only makes it worse.
    """
    path = fabric_path(7001)
    with echo_server(path):
        for name, start in starts.items():
            quiet, loaded = [], []
            with start(path, directory) as (address, _):
                for _ in range(3):
                    quiet.append(p99_us(address))
                    where = f"{address.host}:{address.port}"
                    with running([sys.executable, "-c", DRIVER, where, str(BUSY), str(PERIOD_S), str(idle)]):
                        loaded.append(p99_us(address))
            target = "under 5" if name == "pf-proxy" else ""
            yield Figure(f"relay: p99 of 64 bytes and back, {name}", min(quiet), "us")
            what = f"relay: with {BUSY} busy and {idle} idle, {name}"
            yield Figure(what, min(loaded) / min(quiet), "times", target=target)


def compare_redis(directory: str) -> Iterator[Figure]:
    """redis-benchmark directly, and through two hops of each proxy: TCP, Unix socket, TCP."""
    if shutil.which("redis-server") is None or shutil.which("redis-benchmark") is None:
        return
    port = free_port()
    argv = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    argv += ["--dir", directory, "--maxclients", "1000"]
    with started(argv, port) as (direct, _):
        hops: dict[str, Callable[..., Any]] = {"no proxy": through_nothing, "pf-proxy": through_ours}
        for program, through in (("HAProxy", through_haproxy), ("socat", through_socat)):
            if shutil.which(program.lower()):
                hops[program] = through
        for pipelined in (1, 16):
            best: dict[str, float] = {}
            for name, through in hops.items():
                with through(direct, directory) as address:
                    best[name] = max(redis_rate(address, pipelined) for _ in range(2))
            for name, value in best.items():
                ratio = best["pf-proxy"] / value if name != "pf-proxy" else None
                what = f"relay: Redis GET, {pipelined} at once, {name}"
                yield Figure(what, value, "/s", peer="for pf-proxy" if ratio else "", ratio=ratio)


def redis_rate(address: TcpAddress, pipelined: int) -> float:
    argv = ["redis-benchmark", "-h", address.host, "-p", str(address.port), "-t", "get", "--csv"]
    argv += ["-n", str(REDIS_REQUESTS * (pipelined // 4 or 1)), "-c", str(REDIS_CLIENTS), "-P", str(pipelined)]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=120)
    rows = list(csv.reader(done.stdout.splitlines()))
    return float(rows[-1][1])


@contextmanager
def through_nothing(direct: TcpAddress, directory: str) -> Iterator[TcpAddress]:
    yield direct


@contextmanager
def through_ours(direct: TcpAddress, directory: str) -> Iterator[TcpAddress]:
    argv = ["pf-proxy", "vsock-to-ip", "-v", "any:7002", "-i", f"127.0.0.1:{direct.port}", "--print-address"]
    argv += ["--max-per-cid", "0"]
    with running(argv), ours("", directory, 7002) as (address, _):
        yield address


@contextmanager
def through_haproxy(direct: TcpAddress, directory: str) -> Iterator[TcpAddress]:
    path = os.path.join(directory, "back.sock")
    config = os.path.join(directory, "back.cfg")
    with open(config, "w", encoding="utf-8") as out:
        out.write(HAPROXY_BACK.format(port=direct.port, path=path))
    with ExitStack() as stack:
        stack.enter_context(started(["haproxy", "-q", "-db", "-f", config], direct.port))
        wait_for(path)
        yield stack.enter_context(haproxy(path, directory))[0]


@contextmanager
def through_socat(direct: TcpAddress, directory: str) -> Iterator[TcpAddress]:
    path = os.path.join(directory, "socat.sock")
    argv = ["socat", f"UNIX-LISTEN:{path},fork,backlog=1024", f"TCP:127.0.0.1:{direct.port},nodelay"]
    with ExitStack() as stack:
        stack.enter_context(started(argv, direct.port))
        wait_for(path)
        yield stack.enter_context(socat(path, directory))[0]


def wait_for(path: str) -> None:
    deadline = time.monotonic() + 10
    while True:
        try:
            connect(UnixAddress(path)).close()
            return
        except TransportError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
