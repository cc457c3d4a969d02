# SPDX-License-Identifier: Apache-2.0
"""pf-proxy beside socat, HAProxy and nginx, in one run: TCP in, vsock (here the fabric's Unix socket) out, and back.

One bulk stream each way and through both hops, with ends that copy and with ends that cost next to nothing; CPU seconds
of the proxy per gigabyte; small messages there and back on one connection; short connections one after the other; then
what relay_load and relay_stores measure. The proxies take turns, REPEATS times; the best of each counts, as load only
ever makes it worse.

The target for bulk, twice socat's best, stands at the proxy alone: with ends that copy, two cores have most to do
elsewhere, and a proxy that cost nothing would not reach it. Both are shown.
"""

from __future__ import annotations

import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

from enclavekit_core import fabric
from enclavekit_core.address import Address, TcpAddress, UnixAddress
from enclavekit_core.streams import connect
from own_network import own_network
from processes import cpu_since_s, cpu_times_s
from relay_ends import COPIED_DOWN, COPIED_UP, SHARED_DOWN, SHARED_UP, Way, ask, check_by_hash, run_way
from relay_load import compare_load, echo_server, trips_us
from relay_peers import FRONTS, announced, both_hops, fabric_path, free_port, installed
from relay_stores import compare_stores
from run import Figure

TOTAL_BYTES = 2**29
HASHED_BYTES = 2**26
MESSAGES, CONNECTIONS, REPEATS = 3000, 1000, 3
DESCRIPTORS = 65536  # or as many as are allowed
PORT, ECHO_PORT = 7000, 7001
WAYS = (SHARED_UP, SHARED_DOWN, COPIED_UP, COPIED_DOWN)
ALONE = (SHARED_UP, SHARED_DOWN)

Start = Callable[[], AbstractContextManager[tuple[Address, list[int]]]]


def measure() -> Iterator[Figure]:
    raise_descriptors()
    with tempfile.TemporaryDirectory(prefix="enclavekit-bench-") as directory, own_network():
        os.environ[fabric.RUNTIME_DIR_VARIABLE] = os.path.join(directory, "rt")
        try:
            yield from compare_streams(directory)
            yield from compare_messages(directory)
            yield from compare_load(directory)
            yield from compare_stores(directory)
        finally:
            del os.environ[fabric.RUNTIME_DIR_VARIABLE]


# bulk


def compare_streams(directory: str) -> Iterator[Figure]:
    path = fabric_path(PORT)
    port = free_port()
    with server(path), server(str(port)):
        one: dict[str, Start] = {"no proxy": lambda: nothing(UnixAddress(path))}
        two: dict[str, Start] = {"no proxy": lambda: nothing(TcpAddress("127.0.0.1", port))}
        for name in installed():
            one[name] = lambda name=name: FRONTS[name](path, directory)
            two[name] = lambda name=name: both_hops(name, port, directory)
        for hops, starts in (("one hop", one), ("both hops", two)):
            yield from compare_ways(hops, starts)


def compare_ways(hops: str, starts: dict[str, Start]) -> Iterator[Figure]:
    rates: dict[tuple[Way, str], list[float]] = {}
    costs: dict[tuple[Way, str], list[float]] = {}
    for number in range(REPEATS):
        for name, start in starts.items():
            with start() as (address, pids):
                if not number:
                    with connect(address) as sock:
                        check_by_hash(sock, HASHED_BYTES)
                for way in WAYS:
                    rate, cost = bulk(address, pids, way)
                    rates.setdefault((way, name), []).append(rate)
                    costs.setdefault((way, name), []).append(cost)
    checked = HASHED_BYTES * 2 / 1e6
    yield Figure(f"relay: {hops}, each way, the same by hash, all of them", checked, "MB")
    for way in WAYS:
        best = {name: max(rates[way, name]) for name in starts}
        socats = [value for name, value in best.items() if name.startswith("socat")]
        target = f"{2 * max(socats):.0f}, twice socat's best" if socats and way in ALONE else ""
        yield from ratios(f"{hops}, {way.name}", "MB/s", best, more=True, target=target)
        least = {name: min(costs[way, name]) for name in starts if name != "no proxy"}
        target = "least of all" if way in ALONE else ""
        yield from ratios(f"CPU, {hops}, {way.name}", "s/GB", least, more=False, target=target)


def bulk(address: Address, pids: Sequence[int], way: Way) -> tuple[float, float]:
    """Return MB/s and the proxy's CPU seconds per gigabyte."""
    with connect(address) as sock:
        ask(sock, way.kind, TOTAL_BYTES)
        before, started = cpu_times_s(pids), time.monotonic()
        run_way(sock, way, TOTAL_BYTES)
        taken_s = time.monotonic() - started
        return TOTAL_BYTES / 1e6 / taken_s, cpu_since_s(before, pids) / (TOTAL_BYTES / 1e9)


# messages and connections


def compare_messages(directory: str) -> Iterator[Figure]:
    path = fabric_path(ECHO_PORT)
    trips: dict[str, list[float]] = {}
    rates: dict[str, list[float]] = {}
    costs: dict[str, list[float]] = {}
    with echo_server(path):
        starts: dict[str, Start] = {"no proxy": lambda: nothing(UnixAddress(path))}
        for name in installed():
            starts[name] = lambda name=name: FRONTS[name](path, directory)
        for _ in range(REPEATS):
            for name, start in starts.items():
                with start() as (address, pids):
                    trips.setdefault(name, []).append(round_trip_us(address))
                    before = cpu_times_s(pids)
                    rates.setdefault(name, []).append(connections_per_s(address))
                    costs.setdefault(name, []).append(cpu_since_s(before, pids) / CONNECTIONS * 1e6)
    goals = {"HAProxy": 1.5}
    yield from ratios("64 bytes and back", "us", best_of(trips, min), more=False, goals=goals)
    yield from ratios("connections", "/s", best_of(rates, max), more=True, goals=goals)
    # socat's are processes that have ended
    least = {name: value for name, value in best_of(costs, min).items() if not name.startswith(("socat", "no proxy"))}
    yield from ratios("CPU of a connection", "us", least, more=False)


def best_of(runs: dict[str, list[float]], pick: Callable[[list[float]], float]) -> dict[str, float]:
    return {name: pick(found) for name, found in runs.items()}


def round_trip_us(address: Address) -> float:
    with connect(address) as sock:
        return statistics.median(trips_us(sock, MESSAGES))


def connections_per_s(address: Address) -> float:
    started = time.monotonic()
    for _ in range(CONNECTIONS):
        with connect(address) as sock:
            sock.sendall(b"x")
            sock.recv(1)
    return CONNECTIONS / (time.monotonic() - started)


# figures and surroundings


def ratios(
    what: str,
    unit: str,
    best: dict[str, float],
    *,
    more: bool,
    target: str = "",
    goals: dict[str, float] | None = None,
) -> Iterator[Figure]:
    """The ratio stands at the peer's figure: above 1, pf-proxy is the better one.

    Args:
        more: whether more is better.
        target: at ours, in words.
        goals: of a peer, how many times worse pf-proxy may be.
    """
    for name, value in best.items():
        ratio = None
        if name not in ("pf-proxy", "no proxy"):
            ratio = best["pf-proxy"] / value if more else value / best["pf-proxy"]
        wanted = target if name == "pf-proxy" else ""
        if goals and name in goals:
            wanted = f"over {1 / goals[name]:.2f}"
        peer = "for pf-proxy" if ratio is not None else ""
        yield Figure(f"relay: {what}, {name}", value, unit, target=wanted, peer=peer, ratio=ratio)


@contextmanager
def nothing(address: Address) -> Iterator[tuple[Address, list[int]]]:
    yield address, []


@contextmanager
def server(where: str) -> Iterator[None]:
    """In a process of its own, so that a proxy competes with one client and one server."""
    with ExitStack() as stack:
        stack.enter_context(announced([sys.executable, str(Path(__file__).with_name("relay_ends.py")), where]))
        yield


def raise_descriptors() -> None:
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (DESCRIPTORS, DESCRIPTORS))
    except (OSError, ValueError):
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
