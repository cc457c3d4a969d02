# SPDX-License-Identifier: Apache-2.0
"""UDP through both ends of pf-proxy, beside socat's two ends (as the Rust framework had DNS carried), two of nginx with
its stream module (which has UDP between them, so that no stream has to be cut into datagrams) and no proxy, in one run.

Datagrams there and back one at a time; as many as go with WINDOW of them under way, lost ones left out; new sessions, a
socket for each. socat has no boundaries between datagrams, so it gets none that could run together, and its processes
end with their sessions, so that its CPU time is not known.

In a network of its own; the proxies take turns, REPEATS times, the best of each counts, and CPU time stands beside what
the clock says, which other load changes less.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from enclavekit_core import fabric
from own_network import own_network
from processes import cpu_since_s, cpu_times_s
from relay_peers import STREAM_MODULE
from run import Figure

SMALL, LARGE = bytes(64), bytes(1200)
TRIPS, EXCHANGED, SESSIONS, WINDOW, REPEATS = 2000, 20_000, 300, 32, 5
LOST_S = 0.2  # after so long without an answer, those under way are lost
ECHO = """
import socket
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
    sock.bind(("127.0.0.1", 0))
    print(sock.getsockname()[1], flush=True)
    while True:
        sock.sendto(*sock.recvfrom(65535))
"""
NGINX = """{user}daemon off;
pid {directory}/udp-{hop}.pid;
error_log /dev/null crit;
worker_processes 1;
load_module {module};
events {{ worker_connections 4000; }}
stream {{ server {{ listen 127.0.0.1:{port} udp; proxy_pass 127.0.0.1:{upstream}; }} }}
"""


def measure() -> Iterator[Figure]:
    with tempfile.TemporaryDirectory(prefix="enclavekit-bench-") as directory, own_network():
        os.environ[fabric.RUNTIME_DIR_VARIABLE] = os.path.join(directory, "rt")
        fabric.ensure_runtime_dir()
        try:
            with process(sys.executable, "-c", ECHO, out=True) as (_, echo):
                yield from compare(int(echo), directory)
        finally:
            del os.environ[fabric.RUNTIME_DIR_VARIABLE]


def compare(echo: int, directory: str) -> Iterator[Figure]:
    """The proxies take turns, REPEATS times; the best of each counts."""
    starts = {"no proxy": lambda: direct(echo), "pf-proxy": lambda: ours(echo)}
    if shutil.which("socat"):
        starts["socat"] = lambda: socat(echo, directory)
    if shutil.which("nginx") and os.path.exists(STREAM_MODULE):
        starts["nginx"] = lambda: nginx(echo, directory)
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in starts}
    for _ in range(REPEATS):
        for name, start in starts.items():
            with start() as (port, pids):
                runs[name].append(one_run(port, pids, boundaries=name != "socat"))
    for what, (_, unit, more) in LABELS.items():
        pick = max if more else min
        best = {name: pick(run[what] for run in found) for name, found in runs.items() if what in found[0]}
        for name, value in best.items():
            ratio = None
            if name not in ("pf-proxy", "no proxy"):
                ratio = best["pf-proxy"] / value if more else value / best["pf-proxy"]
            label = LABELS[what][0]
            yield Figure(f"udp: {label}, {name}", value, unit, peer="for pf-proxy" if ratio else "", ratio=ratio)
    for name, found in runs.items():
        if "lost" in found[0]:
            lost = sum(run["lost"] for run in found) / (EXCHANGED * REPEATS) * 100
            target = "0" if name == "pf-proxy" else ""
            yield Figure(f"udp: 1200 bytes and back, lost, {name}", lost, "%", target=target)


LABELS = {  # what, unit, whether more is better
    "trip": ("64 bytes and back", "us", False),
    "trip_cpu": ("CPU of 64 bytes and back", "us", False),
    "rate": ("1200 bytes and back", "/s", True),
    "rate_cpu": ("CPU of 1200 bytes and back", "us", False),
    "new": ("sessions", "/s", True),
    "new_cpu": ("CPU of a session", "us", False),
}


def one_run(port: int, pids: Sequence[int], *, boundaries: bool) -> dict[str, float]:
    before = cpu_times_s(pids)
    found = {"trip": round_trip_us(port)}
    costs = {"trip_cpu": cpu_since_s(before, pids) / TRIPS}
    before = cpu_times_s(pids)
    found["new"] = sessions_per_s(port)
    costs["new_cpu"] = cpu_since_s(before, pids) / SESSIONS
    if boundaries:
        before = cpu_times_s(pids)
        found["rate"], found["lost"] = exchanged_per_s(port)
        costs["rate_cpu"] = cpu_since_s(before, pids) / (EXCHANGED - found["lost"])
    return found | {what: spent_s * 1e6 for what, spent_s in costs.items() if pids}


def client(port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.connect(("127.0.0.1", port))
    sock.settimeout(LOST_S)
    return sock


def exchange(sock: socket.socket, data: bytes) -> None:
    while True:
        sock.send(data)
        try:
            sock.recv(65535)
            return
        except (TimeoutError, ConnectionRefusedError):
            continue


def round_trip_us(port: int) -> float:
    times = []
    with client(port) as sock:
        exchange(sock, SMALL)
        for _ in range(TRIPS):
            started = time.perf_counter()
            exchange(sock, SMALL)
            times.append(time.perf_counter() - started)
    return sorted(times)[TRIPS // 2] * 1e6


def exchanged_per_s(port: int) -> tuple[float, int]:
    """Return answers per second, and how many were lost; waiting for those is no part of the time."""
    with client(port) as sock:
        exchange(sock, SMALL)
        sent = answered = lost = 0
        waited_s = 0.0
        started = time.perf_counter()
        while answered + lost < EXCHANGED:
            while sent < EXCHANGED and sent - answered - lost < WINDOW:
                sock.send(LARGE)
                sent += 1
            try:
                sock.recv(65535)
                answered += 1
            except TimeoutError:
                lost = sent - answered
                waited_s += LOST_S
        return answered / (time.perf_counter() - started - waited_s), lost


def sessions_per_s(port: int) -> float:
    started = time.perf_counter()
    for _ in range(SESSIONS):
        with client(port) as sock:
            exchange(sock, SMALL)
    return SESSIONS / (time.perf_counter() - started)


@contextmanager
def direct(echo: int) -> Iterator[tuple[int, list[int]]]:
    yield echo, []


@contextmanager
def ours(echo: int) -> Iterator[tuple[int, list[int]]]:
    inside = ("pf-proxy", "vsock-to-ip", "-v", "any:7000", "-i", f"127.0.0.1:{echo}", "--udp", "--print-address")
    outside = ("pf-proxy", "ip-to-vsock", "-i", "127.0.0.1:0", "-v", "parent:7000", "--udp", "--print-address")
    many = ("--max-per-source", "0", "--max-connections", "4096")
    with (
        process(*inside, "--max-per-cid", "0", "--max-connections", "4096", out=True) as (behind, _),
        process(*outside, *many, out=True) as (before, address),
    ):
        yield int(address.rpartition(":")[2]), [before, behind]


@contextmanager
def socat(echo: int, directory: str) -> Iterator[tuple[int, list[int]]]:
    path, port = f"{directory}/socat.sock", free_port()
    with (
        process("socat", f"UNIX-LISTEN:{path},fork,unlink-early", f"UDP4:127.0.0.1:{echo}"),
        process("socat", f"UDP4-LISTEN:{port},bind=127.0.0.1,fork", f"UNIX-CONNECT:{path}"),
    ):
        wait_for(port)
        yield port, []


@contextmanager
def nginx(echo: int, directory: str) -> Iterator[tuple[int, list[int]]]:
    pids, port = [], echo
    with ExitStack() as stack:
        for hop in ("inside", "outside"):
            upstream, port = port, free_port()
            config = f"{directory}/udp-{hop}.conf"
            user = "" if os.geteuid() else "user root;\n"
            values = {"module": STREAM_MODULE, "port": port, "upstream": upstream, "hop": hop}
            with open(config, "w") as out:
                out.write(NGINX.format(user=user, directory=directory, **values))
            pids.append(stack.enter_context(process("nginx", "-c", config, "-p", directory))[0])
            wait_for(port)
        yield port, pids


def free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def wait_for(port: int) -> None:
    with client(port) as sock:
        exchange(sock, SMALL)


@contextmanager
def process(*argv: str, out: bool = False) -> Iterator[tuple[int, str]]:
    """A program for a while, and the first line that it prints."""
    with ExitStack() as stack:
        pipe = subprocess.PIPE if out else subprocess.DEVNULL
        running = stack.enter_context(
            subprocess.Popen(argv, stdout=pipe, stderr=subprocess.DEVNULL, text=True, start_new_session=True)
        )
        stack.callback(os.killpg, running.pid, signal.SIGTERM)  # socat forks for each session
        yield running.pid, running.stdout.readline().strip() if running.stdout is not None else ""
