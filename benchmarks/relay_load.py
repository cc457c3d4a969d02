# SPDX-License-Identifier: Apache-2.0
"""Proxies with many connections: what bench_relay measures beside single streams.

More than one process may have descriptors for: each proxy is two, or has two workers, and so are those that hold idle
connections. Afterwards each of them has to carry bytes still.
"""

from __future__ import annotations

import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from enclavekit_core.address import Address, TcpAddress
from enclavekit_core.streams import connect
from processes import resident_bytes
from relay_peers import FRONTS, fabric_path, installed
from run import Figure

BUSY, IDLE = 1000, 10_000
HOLDERS, WORKERS = 2, 2
PERIOD_S = 0.5  # each busy connection sends a message so often: 2000 messages/s together, far below saturation
TRIPS, REPEATS = 1000, 10  # short, so that some of them meet no other load
MESSAGE = bytes(64)
LOAD_PORT = 7002
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
OPEN = """
import select, socket, sys, time
host, _, port = sys.argv[1].rpartition(":")
count = int(sys.argv[2])
socks = [socket.create_connection((host, int(port))) for _ in range(count)]
def ask(sock):
    sock.sendall(bytes(64))
    return len(sock.recv(64, socket.MSG_WAITALL)) == 64
print(sum(map(ask, socks)), flush=True)
"""
# connections at rest; asked by a line, each carries bytes once more
HOLDER = OPEN + "sys.stdin.readline()\nprint(sum(map(ask, socks)), flush=True)\n"
# connections that send a message in turn, evenly over a period
DRIVER = (
    OPEN
    + """
period = float(sys.argv[3])
epoll, by_fd = select.epoll(), {sock.fileno(): sock for sock in socks}
for fd, sock in by_fd.items():
    sock.setblocking(False)
    epoll.register(fd, select.EPOLLIN)
sent, started = 0, time.monotonic()
while True:
    due = int((time.monotonic() - started) / period * count)
    while sent < due:
        socks[sent % count].send(bytes(64))
        sent += 1
    for fd, _ in epoll.poll(period / count):
        by_fd[fd].recv(4096)
"""
)


@contextmanager
def echo_server(path: str) -> Iterator[None]:
    with programs(ECHO, [path]):
        yield


@contextmanager
def programs(code: str, *argvs: list[str]) -> Iterator[list[tuple[subprocess.Popen[str], str]]]:
    """Run Python code with each of `argvs`; the first line of each says that it is ready."""
    with ExitStack() as stack:
        running = []
        for argv in argvs:
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
            program = subprocess.Popen([sys.executable, "-c", code, *argv], text=True, **pipes)  # type: ignore[call-overload]
            stack.enter_context(program)
            stack.callback(program.kill)
            running.append(program)
        lines = [program.stdout.readline().strip() for program in running]
        if not all(lines):
            raise RuntimeError("a program of the benchmark did not start")
        yield list(zip(running, lines, strict=True))


def trips_us(sock: socket.socket, count: int) -> list[float]:
    times = []
    for _ in range(count):
        started_at = time.perf_counter()
        sock.sendall(MESSAGE)
        sock.recv(len(MESSAGE), socket.MSG_WAITALL)
        times.append((time.perf_counter() - started_at) * 1e6)
    return times


def p99_us(address: Address) -> float:
    with connect(address) as sock:
        trips_us(sock, TRIPS // 10)  # the first ones pay for what was not used yet
        return statistics.quantiles(trips_us(sock, TRIPS), n=100)[98]


def compare_load(directory: str) -> Iterator[Figure]:
    """Memory of IDLE connections; p99 of a small request with nobody else, and with BUSY ones at work besides.

    The smallest of REPEATS counts, as other load only makes it worse.
    """
    path = fabric_path(LOAD_PORT)
    with echo_server(path):
        for name in installed():
            if not name.startswith("socat"):  # which has a process for each connection
                with FRONTS[name](path, directory, WORKERS) as (address, pids):
                    yield from loaded(name, address, pids)


def loaded(name: str, address: TcpAddress, pids: list[int]) -> Iterator[Figure]:
    where, is_ours = f"{address.host}:{address.port}", name == "pf-proxy"
    alone = [p99_us(address) for _ in range(REPEATS)]
    before = resident_bytes(pids)
    with programs(HOLDER, *[[where, str(IDLE // HOLDERS)]] * HOLDERS) as holders:
        each = (resident_bytes(pids) - before) / IDLE / 1024
        with programs(DRIVER, [where, str(BUSY), str(PERIOD_S)]) as drivers:
            held = sum(int(line) for _, line in holders + drivers)
            busy = [p99_us(address) for _ in range(REPEATS)]
        for holder, _ in holders:
            holder.stdin.write("\n")
            holder.stdin.flush()
        alive = sum(int(holder.stdout.readline() or 0) for holder, _ in holders)
    quiet = min(alone + [p99_us(address) for _ in range(REPEATS)])  # before and after: a busy machine changes
    target = f"{IDLE + BUSY}" if is_ours else ""
    yield Figure(f"relay: connections at a time, two processes, {name}", held, "", target=target)
    yield Figure(f"relay: of them idle, and alive afterwards, {name}", alive, "", target=f"{IDLE}" if is_ours else "")
    yield Figure(f"relay: memory of an idle one, {name}", each, "KiB", target="under 8" if is_ours else "")
    yield Figure(f"relay: p99 of 64 bytes and back, alone, {name}", quiet, "us")
    yield Figure(f"relay: p99 beside {BUSY} busy and {IDLE} idle, {name}", min(busy), "us")
    target = "under 5" if is_ours else ""
    yield Figure(f"relay: which is as much as, {name}", min(busy) / quiet, "times", target=target)
