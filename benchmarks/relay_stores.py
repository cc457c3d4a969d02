# SPDX-License-Identifier: Apache-2.0
"""Redis and memcached through both hops of each proxy, TCP, Unix socket, TCP, with what is left of the direct rate.

The form is that of the published figures for Nitro Enclaves (github.com/DataManagementLab/nitro-enclaves-benchmarks):
redis-benchmark SET, 10 clients, 3 requests at once. Theirs: 369,011/s direct, 286,541 behind socat on the host, 20,492
in an enclave behind socat, 6 % of direct. Here the hop into the enclave is a Unix socket, and all share the machine.
"""

from __future__ import annotations

import csv
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial

from enclavekit_core.address import TcpAddress
from processes import cpu_since_s, cpu_times_s
from relay_peers import both_hops, free_port, installed, started
from run import Figure

REPEATS = 3
RUN_S = 3  # of memcaslap
TIMEOUT_S = 120
SINGLE = ("pf-proxy", "HAProxy", "nginx")  # of the others each connection is a process, which ends with it
Start = Callable[[], AbstractContextManager[tuple[TcpAddress, list[int]]]]


@dataclass(frozen=True)
class Run:
    requests: int
    rate: float
    """Requests per second."""
    median_ms: float = 0.0
    """Of one request; 0: not said."""


@dataclass(frozen=True)
class Load:
    name: str
    run: Callable[[TcpAddress], Run]
    published: float = 0.0
    """Of the direct rate, in per cent: an enclave behind socat."""


def compare_stores(directory: str) -> Iterator[Figure]:
    if shutil.which("redis-server") and shutil.which("redis-benchmark"):
        port = free_port()
        argv = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        with started([*argv, "--dir", directory, "--maxclients", "1000"], TcpAddress("127.0.0.1", port)):
            for load in REDIS:
                yield from compare_load(load, port, directory)
    if shutil.which("memcached") and shutil.which("memcaslap"):
        port = free_port()
        argv = ["memcached", "-u", "root", "-l", "127.0.0.1", "-p", str(port), "-U", "0", "-m", "256", "-t", "1"]
        with started(argv, TcpAddress("127.0.0.1", port)):
            yield from compare_load(MEMCACHED, port, directory)


def compare_load(load: Load, port: int, directory: str) -> Iterator[Figure]:
    starts: dict[str, Start] = {"no proxy": lambda: nothing(port)}
    starts |= {name: partial(both_hops, name, port, directory) for name in installed()}
    starts["pf-proxy, 2 workers"] = partial(both_hops, "pf-proxy", port, directory, 2)
    runs: dict[str, list[Run]] = {name: [] for name in starts}
    costs: dict[str, list[float]] = {name: [] for name in starts if name.startswith(SINGLE)}
    for _ in range(REPEATS):
        for name, start in starts.items():
            with start() as (address, pids):
                before = cpu_times_s(pids)
                run = load.run(address)
                runs[name].append(run)
                if name in costs:
                    costs[name].append(cpu_since_s(before, pids) / run.requests * 1e6)
    best = {name: max(run.rate for run in found) for name, found in runs.items()}
    for name, rate in best.items():
        ratio = None if name == "no proxy" or name.startswith("pf-proxy") else best["pf-proxy"] / rate
        yield Figure(
            f"relay: {load.name}, {name}", rate, "/s", peer="for pf-proxy" if ratio is not None else "", ratio=ratio
        )
    for name, rate in best.items():
        if name != "no proxy":
            target = f"published: {load.published:.0f}" if load.published and name.startswith("socat") else ""
            yield Figure(f"relay: {load.name}, left of it, {name}", rate / best["no proxy"] * 100, "%", target=target)
    for name, cost in costs.items():
        yield Figure(f"relay: {load.name}, CPU of a request, {name}", min(cost), "us")
    for name, found in runs.items():
        if median := min(run.median_ms for run in found):
            yield Figure(f"relay: {load.name}, median, {name}", median, "ms")


def redis(verb: str, clients: int, pipelined: int, requests: int, address: TcpAddress) -> Run:
    argv = ["redis-benchmark", "-h", address.host, "-p", str(address.port), "-t", verb, "--csv"]
    rows = list(csv.reader(output(argv, "-n", requests, "-c", clients, "-P", pipelined).splitlines()))
    columns = dict(zip(rows[0], rows[-1], strict=True))
    return Run(requests, float(columns["rps"]), float(columns["p50_latency_ms"]))


def memcached(address: TcpAddress) -> Run:
    argv = ["memcaslap", "-s", f"{address.host}:{address.port}"]
    said = re.search(r"Ops: (\d+) TPS: (\d+)", output(argv, "-t", f"{RUN_S}s", "-T", 1, "-c", 10))
    if said is None:
        raise RuntimeError("memcaslap said nothing")
    return Run(int(said[1]), float(said[2]))


def output(argv: list[str], *more: object) -> str:
    command = [*argv, *map(str, more)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr.strip()[-300:]}")
    return done.stdout


REDIS = (
    Load("Redis SET, 10 clients, 3 at once", partial(redis, "set", 10, 3, 100_000), published=20_492 / 369_011 * 100),
    Load("Redis GET, 50 clients, 1 at once", partial(redis, "get", 50, 1, 60_000)),
    Load("Redis GET, 50 clients, 16 at once", partial(redis, "get", 50, 16, 240_000)),
)
MEMCACHED = Load("memcached, 9 GET to 1 SET of 1 KiB, 10 clients", memcached)


@contextmanager
def nothing(port: int) -> Iterator[tuple[TcpAddress, list[int]]]:
    yield TcpAddress("127.0.0.1", port), []
