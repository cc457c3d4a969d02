# SPDX-License-Identifier: Apache-2.0
"""fs-monitor on a tree and a bus of its own: from close to the bus, the first scan, large files, memory, and rest.

Latency is told by the bus itself, to a subscriber that notes when each hash arrives; the quiet time that fs-monitor
gives a file after its close is taken off. The peer hashes the same files in one process, as sha3sum would.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from enclavekit_core.bus import BUCKET_HASHES, SERVICE_FS_MONITOR, path_of_key
from enclavekit_core.bus_connection import Bus, follow, load_credentials
from enclavekit_core.bus_setup import credentials_path
from enclavekit_core.bus_setup import main as set_up_bus
from enclavekit_fs_monitor import control_client
from enclavekit_fs_monitor.waiting import Patience
from run import Figure

LATENCY_FILES, FILES_PER_S = 4000, 200
SMALL_FILES, SMALL_BYTES, PER_DIRECTORY = 100_000, 1000, 1000
LARGE_FILES, LARGE_BYTES = 8, 256 << 20
BLOCK_BYTES = 1 << 20
REST_S = 30
STORE_BYTES = 1 << 30


class Service:
    """A NATS server and an fs-monitor on `directory`/tree."""

    def __init__(self, directory: Path, port: int) -> None:
        self.directory, self.tree = directory, directory / "tree"
        self.url, self.socket = f"nats://127.0.0.1:{port}", f"unix://{directory}/control.sock"
        self.tree.mkdir()
        nats = str(directory / "nats")
        limit = ["--max-store-bytes", str(STORE_BYTES)]
        assert set_up_bus(["--directory", nats, "--listen", f"tcp://127.0.0.1:{port}", *limit]) == 0
        self.credentials = credentials_path(SERVICE_FS_MONITOR, nats)
        self.nats = subprocess.Popen(["nats-server", "-c", f"{nats}/nats.conf"], stderr=subprocess.DEVNULL)
        self.monitor: subprocess.Popen[bytes] | None = None

    def start(self) -> float:
        """Start fs-monitor; return the seconds until all that is there is on the bus."""
        argv = [sys.executable, "-m", "enclavekit_fs_monitor", "-d", str(self.tree), "--nats-url", self.url]
        argv += ["--credentials", self.credentials, "--socket", self.socket]
        started = time.monotonic()
        with open(self.directory / "log", "ab") as log:
            self.monitor = subprocess.Popen(argv, cwd=self.directory, stderr=log)
        control_client._wait_until_ready(self.socket)
        return time.monotonic() - started

    def stop(self) -> None:
        for process in (self.monitor, self.nats):
            if process is not None:
                process.send_signal(signal.SIGTERM)
                process.wait()

    def cpu_s(self) -> float:
        assert self.monitor is not None
        fields = Path(f"/proc/{self.monitor.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def memory_bytes(self) -> int:
        """Return what is resident and its own, measured by the kernel."""
        assert self.monitor is not None
        lines = Path(f"/proc/{self.monitor.pid}/smaps_rollup").read_text().splitlines()
        return sum(int(line.split()[1]) for line in lines if line.startswith("Private")) * 1024


def measure() -> Iterator[Figure]:
    for part in (measure_latency, measure_small_files, measure_large_files):
        with tempfile.TemporaryDirectory(prefix="enclavekit-bench-") as name:
            service = Service(Path(name), free_port())
            try:
                yield from part(service)
            finally:
                service.stop()


def measure_latency(service: Service) -> Iterator[Figure]:
    service.start()
    closed: dict[bytes, float] = {}
    arrived = asyncio.run(arrivals(service, closed))
    quiet_ms = Patience().quiet_s * 1000
    beyond = [(arrived[path] - at_s) * 1000 - quiet_ms for path, at_s in closed.items()]
    cuts = statistics.quantiles(beyond, n=100)
    what = f"close to bus beyond the quiet time, {FILES_PER_S}/s"
    yield Figure(f"{what}, median", cuts[49], "ms", target="under 15")
    yield Figure(f"{what}, p99", cuts[98], "ms", target="under 60")
    yield from measure_rest(service)


async def arrivals(service: Service, closed: dict[bytes, float]) -> dict[bytes, float]:
    """Write the files, noting when each was closed; return when the bus had each hash."""
    bus = Bus(service.url, SERVICE_FS_MONITOR, load_credentials(service.credentials))
    await bus.connect()
    changes = follow(await bus.bucket(BUCKET_HASHES, create=True))
    arrived: dict[bytes, float] = {}
    async for entry in changes:
        if entry is None:
            break
    writer = threading.Thread(target=write_files, args=(service.tree, closed))
    writer.start()
    async for entry in changes:
        assert entry is not None
        arrived.setdefault(path_of_key(entry.key), time.monotonic())
        if len(arrived) == LATENCY_FILES:
            break
    writer.join()
    await changes.aclose()
    await bus.close()
    return arrived


def write_files(tree: Path, closed: dict[bytes, float]) -> None:
    started = time.monotonic()
    for number in range(LATENCY_FILES):
        time.sleep(max(0.0, started + number / FILES_PER_S - time.monotonic()))
        path = tree / f"file{number}"
        path.write_bytes(os.urandom(SMALL_BYTES))
        closed[os.fsencode(path)] = time.monotonic()


def measure_rest(service: Service) -> Iterator[Figure]:
    before_s = service.cpu_s()
    time.sleep(REST_S)
    yield Figure(f"CPU time in {REST_S} s of rest", (service.cpu_s() - before_s) * 1000, "ms", target="0")


def measure_small_files(service: Service) -> Iterator[Figure]:
    service.start()
    empty_bytes = service.memory_bytes()
    assert service.monitor is not None
    service.monitor.terminate()
    service.monitor.wait()
    for number in range(SMALL_FILES):
        path = service.tree / str(number // PER_DIRECTORY) / f"file-{number}"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(os.urandom(SMALL_BYTES))
    hash_in_one_process(service.tree)  # into the page cache, for both
    took_s = service.start()
    peer_s = hash_in_one_process(service.tree)
    peer = "hashing the same in one process"
    what = f"first scan of {SMALL_FILES} files"
    yield Figure(f"{what}, hashes on the bus", SMALL_FILES / took_s, "/s", peer=peer, ratio=peer_s / took_s)
    yield Figure(f"{what}, hashing alone", SMALL_FILES / peer_s, "/s")
    per_file = (service.memory_bytes() - empty_bytes) / SMALL_FILES
    yield Figure("memory for each tracked file", per_file, "bytes", target="under 600")
    service.monitor.terminate()
    service.monitor.wait()
    took_s = service.start()
    yield Figure(f"{what} that are on the bus", SMALL_FILES / took_s, "/s", peer=peer, ratio=peer_s / took_s)


def measure_large_files(service: Service) -> Iterator[Figure]:
    block = os.urandom(BLOCK_BYTES)
    for number in range(LARGE_FILES):
        with open(service.tree / f"large{number}", "wb") as out:
            for count in range(LARGE_BYTES // BLOCK_BYTES):
                out.write(count.to_bytes(8, "big") + block[8:])
    hash_in_one_process(service.tree)
    cores_rate = sum(rates_of_cores(block))
    took_s = hashing_s(service)
    rate = LARGE_FILES * LARGE_BYTES / took_s
    peer = "SHA3-512 in memory on all cores"
    yield Figure("large files", rate / 1e6, "MB/s", target="0.9 of the cores", peer=peer, ratio=rate / cores_rate)


def hashing_s(service: Service) -> float:
    """Return for how long fs-monitor, which runs, hashes what is moved in, beyond the quiet time."""
    large = [path.rename(service.directory / path.name) for path in service.tree.iterdir()]
    service.start()
    for path in large:
        path.rename(service.tree / path.name)
    started = time.monotonic()
    while control_client.ask(service.socket, "/status")["files"]["closed"] < LARGE_FILES:
        time.sleep(0.02)
    return time.monotonic() - started - Patience().quiet_s


def rates_of_cores(block: bytes) -> list[float]:
    """Return the bytes per second of each core, all at work at the same time."""
    rates: list[float] = []

    def hash_blocks() -> None:
        sha3, started = hashlib.sha3_512(), time.monotonic()
        for _ in range(2 * LARGE_BYTES // BLOCK_BYTES):
            sha3.update(block)
        rates.append(2 * LARGE_BYTES / (time.monotonic() - started))

    threads = [threading.Thread(target=hash_blocks) for _ in os.sched_getaffinity(0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return rates


def hash_in_one_process(tree: Path) -> float:
    """Hash every file below `tree`, one after the other; return the seconds."""
    started, buffer = time.monotonic(), memoryview(bytearray(BLOCK_BYTES))
    for directory, _, names in os.walk(tree):
        for name in names:
            sha3 = hashlib.sha3_512()
            with open(os.path.join(directory, name), "rb", buffering=0) as source:
                while count := source.readinto(buffer):
                    sha3.update(buffer[:count])
            sha3.digest()
    return time.monotonic() - started


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
