# SPDX-License-Identifier: Apache-2.0
"""pf-proxy beside socat, HAProxy and nginx, in one run: TCP in, vsock (here the fabric's Unix socket) out.

One bulk stream; small messages there and back on one connection; short connections one after the other; CPU seconds of
the proxy per gigabyte; memory of idle connections; a small request beside a thousand busy ones; Redis behind two hops.
"""

from __future__ import annotations

import os
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from enclavekit_core import fabric
from enclavekit_core.address import UnixAddress
from enclavekit_core.streams import connect
from relay_load import IDLE, compare_load, compare_redis, trips_us
from relay_peers import PEERS, fabric_path, installed, ours
from run import Figure

TOTAL_BYTES = 2**30  # on shared cores the clock says less than the proxy's CPU time
CHUNK = bytes(256 * 1024)
MESSAGES, CONNECTIONS, REPEATS = 3000, 1000, 3
DESCRIPTORS = 65536  # two for each idle connection; IDLE is less where that is not allowed
PORT = 7000
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
# in a process of its own, so that a proxy competes with one client and one server; a first byte says what to do
SERVER = """
import socket, sys, threading
def serve(sock):
    with sock:
        try:
            kind = sock.recv(1)
            buffer = bytearray(262144 if kind == b"b" else 4096)
            if kind == b"e":
                while count := sock.recv_into(buffer):
                    sock.sendall(memoryview(buffer)[:count])
            elif kind == b"b":
                total = 0
                while count := sock.recv_into(buffer):
                    total += count
                sock.sendall(b"%d" % total)
        except OSError:
            pass
threading.stack_size(65536)
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen(1024)
print("ready", flush=True)
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
"""


def measure() -> Iterator[Figure]:
    raise_descriptors()
    with tempfile.TemporaryDirectory(prefix="enclavekit-bench-") as directory:
        os.environ[fabric.RUNTIME_DIR_VARIABLE] = os.path.join(directory, "rt")
        try:
            path = fabric_path(PORT)
            with server(path):
                yield from compare(path, directory)
        finally:
            del os.environ[fabric.RUNTIME_DIR_VARIABLE]


def compare(path: str, directory: str) -> Iterator[Figure]:
    """The proxies take turns, REPEATS times; the best of each counts, as load only ever makes it worse."""
    direct = [one_run(UnixAddress(path), None) for _ in range(REPEATS)]
    starts = {"pf-proxy": ours, **{name: PEERS[name] for name in installed()}}
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in starts}
    for _ in range(REPEATS):
        for name, start in starts.items():
            with start(path, directory) as (address, pid):
                runs[name].append(one_run(address, pid if not name.startswith("socat") else None))
    for what, unit, more in (
        ("bulk", "MB/s", True),
        ("cpu", "s/GB", False),
        ("trip", "us", False),
        ("new", "/s", True),
    ):
        pick = max if more else min
        best = {
            name: pick(run[what] for run in found if what in run)
            for name, found in {"no proxy": direct, **runs}.items()
            if any(what in run for run in found)
        }
        for name, value in best.items():
            ratio = None if name in ("pf-proxy", "no proxy") else best["pf-proxy"] / value
            if ratio is not None and not more:
                ratio = 1 / ratio
            # the ratio stands at the peer's figure: above 1, pf-proxy is the better one
            yield Figure(
                f"relay: {LABELS[what]}, {name}", value, unit, peer="for pf-proxy" if ratio else "", ratio=ratio
            )
    with ours(path, directory) as (address, pid):
        yield memory_of_idle(address, pid)
    single = {name: start for name, start in starts.items() if not name.startswith("socat")}  # which forks
    yield from compare_load(single, directory, possible_idle())
    yield from compare_redis(directory)


LABELS = {"bulk": "one stream", "cpu": "CPU of the proxy", "trip": "64 bytes and back", "new": "connections"}


def one_run(address: Any, pid: int | None) -> dict[str, float]:
    before = cpu_s(pid) if pid else 0.0
    found = {"bulk": bulk(address)}
    if pid:
        found["cpu"] = (cpu_s(pid) - before) / (TOTAL_BYTES / 1e9)
    return {**found, "trip": round_trip_us(address), "new": connections_per_s(address)}


def bulk(address: Any) -> float:
    with connect(address) as sock:
        sock.sendall(b"b")
        started = time.monotonic()
        for _ in range(TOTAL_BYTES // len(CHUNK)):
            sock.sendall(CHUNK)
        sock.shutdown(socket.SHUT_WR)
        arrived = int(sock.recv(100))
        taken_s = time.monotonic() - started
    if arrived != TOTAL_BYTES:
        raise RuntimeError(f"{arrived} of {TOTAL_BYTES} bytes arrived")
    return TOTAL_BYTES / 1e6 / taken_s


def round_trip_us(address: Any) -> float:
    with connect(address) as sock:
        sock.sendall(b"e")
        return statistics.median(trips_us(sock, MESSAGES))


def connections_per_s(address: Any) -> float:
    started = time.monotonic()
    for _ in range(CONNECTIONS):
        with connect(address) as sock:
            sock.sendall(b"ex")
            sock.recv(1)
    return CONNECTIONS / (time.monotonic() - started)


def memory_of_idle(address: Any, pid: int) -> Figure:
    """Connections that have carried a byte each way and say nothing now."""
    before = resident_bytes(pid)
    count = possible_idle()
    idle = [connect(address) for _ in range(count)]
    for sock in idle:
        sock.sendall(b"ex")
        sock.recv(1)
    each = (resident_bytes(pid) - before) / count / 1024
    for sock in idle:
        sock.close()
    return Figure(f"relay: memory of each of {count} idle connections", each, "KiB", target="under 8")


def possible_idle() -> int:
    return min(IDLE, (resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 5000) // 2)


@contextmanager
def server(path: str) -> Iterator[None]:
    with subprocess.Popen([sys.executable, "-c", SERVER, path], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            yield
        finally:
            process.kill()


def cpu_s(pid: int) -> float:
    with open(f"/proc/{pid}/stat", encoding="ascii") as source:
        words = source.read().rpartition(")")[2].split()
    total = (int(words[11]) + int(words[12])) / TICKS_PER_S
    with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as source:
        return total + sum(cpu_s(int(child)) for child in source.read().split())


def resident_bytes(pid: int) -> int:
    with open(f"/proc/{pid}/statm", encoding="ascii") as source:
        return int(source.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def raise_descriptors() -> None:
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (DESCRIPTORS, DESCRIPTORS))
    except (OSError, ValueError):
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
