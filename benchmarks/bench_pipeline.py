# SPDX-License-Identifier: Apache-2.0
"""pipeline: commands on a warm and a cold connection, a hundred at once; one large file beside plain TLS by OpenSSL's
own programs and beside scp; many small files beside a connection for each; the listener's memory while data streams.

The listener runs in a fabric of its own, with an emulated NSM; files lie in memory, so that no disk is between the two.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import yaml
from enclavekit_core import fabric
from enclavekit_emulator.nsm_authority import dev_root_path
from enclavekit_emulator.nsm_server import serve_nsm
from enclavekit_emulator.nsm_service import NsmService
from enclavekit_pipeline import Enclave
from enclavekit_pipeline.host.identity import generate
from pipeline_peers import missing_ssh, openssl_seconds, ssh_server
from run import Figure

CID = 20
PCRS = {index: bytes([index + 1]) * 48 for index in range(3)}
WARM, COLD, AT_ONCE = 400, 20, 100
# one that caches and start-up still show in, and one in which they no longer do
FILE_SIZES = {"512 MiB": 512 << 20, "2 GiB": 2 << 30}
ROUNDS = 3
SMALL_FILES, SMALL_BYTES, SMALL_DIRECTORIES, SINGLES = 10_000, 1000, 100, 30
STREAMED_BYTES, STREAM_CHUNK = 4_000_000_000, 256 * 1024
TRUE = ["/bin/true"]
TICKS_PER_S = os.sysconf("SC_CLK_TCK")

Maker = Callable[[], Enclave]


def measure() -> Iterator[Figure]:
    with tempfile.TemporaryDirectory(prefix="enclavekit-bench-", dir="/dev/shm") as name:
        directory = Path(name)
        with listening(directory) as (listener, flags):
            make = enclave_maker(directory)
            yield from asyncio.run(measure_commands(make, listener))
            for label, size in FILE_SIZES.items():
                yield from measure_large_file(directory, make, flags, label, size)
            yield from asyncio.run(measure_small_files(directory, make))
            yield from asyncio.run(measure_memory(make, listener))


@contextlib.contextmanager
def listening(directory: Path) -> Iterator[tuple[subprocess.Popen[bytes], list[str | Path]]]:
    """Run `pipeline listen`; yield its process and the flags that a caller needs."""
    before = os.environ.get(fabric.RUNTIME_DIR_VARIABLE)
    os.environ[fabric.RUNTIME_DIR_VARIABLE] = str(directory / "rt")
    fabric.ensure_runtime_dir()
    generate("bench", str(directory))
    client = {"name": "bench", "certificate": (directory / "bench.crt").read_text(), "system": True}
    (directory / "clients.yaml").write_text(
        yaml.safe_dump({"clients": [{**client, "allow": ["exec", "cp-in", "cp-out"]}]})
    )
    view = directory / "view"
    os.makedirs(view / "registry")
    os.makedirs(directory / f"rt/fabric/{CID}")
    os.symlink(directory / "rt/fabric", view / "fabric")
    fabric.write_record(str(view / "registry/self.json"), {"cid": CID})
    fabric.write_record(str(directory / f"rt/registry/{CID}.json"), {"cid": CID, "transport": "fabric"})
    (directory / "app").mkdir()
    nsm = socket.socket(socket.AF_UNIX)
    nsm.bind(str(directory / "nsm"))
    nsm.listen()
    server = serve_nsm(nsm, NsmService.for_enclave(PCRS, "i-0-enc0", str(directory / "state"), ()))
    argv: list[str | Path] = [
        "pipeline",
        "listen",
        "--clients",
        directory / "clients.yaml",
        "--root",
        directory / "app",
    ]
    flags: list[str | Path] = ["--pcr", f"0={PCRS[0].hex()}", "--identity", directory / "bench"]
    flags += ["--insecure-dev-root", dev_root_path(str(directory / "state"))]
    try:
        # its log goes to a file, as it does in an enclave to the console: writing it is part of what a command costs
        with open(directory / "listen.log", "wb") as log:
            process = subprocess.Popen(
                [*argv, "--nsm", directory / "nsm"],
                env={**os.environ, fabric.RUNTIME_DIR_VARIABLE: str(view)},
                stderr=log,
            )
        try:
            yield process, flags
        finally:
            process.terminate()
            process.wait()
    finally:
        server.close()
        del os.environ[fabric.RUNTIME_DIR_VARIABLE]
        if before is not None:
            os.environ[fabric.RUNTIME_DIR_VARIABLE] = before


def enclave_maker(directory: Path) -> Maker:
    root = dev_root_path(str(directory / "state"))
    return lambda: Enclave(
        cid=CID, pcrs=PCRS, identity=directory / "bench", insecure_dev_root=root, connect_timeout_s=20
    )


async def measure_commands(make: Maker, listener: subprocess.Popen[bytes]) -> list[Figure]:
    warm, spawned, cold = [], [], []
    async with make() as enclave:
        await enclave.exec(TRUE, system=True)
        for _ in range(WARM):
            begun = time.perf_counter()
            await enclave.exec(TRUE, system=True)
            warm.append((time.perf_counter() - begun) * 1000)
            begun = time.perf_counter()
            subprocess.run(TRUE, capture_output=True)
            spawned.append((time.perf_counter() - begun) * 1000)
        ticks = cpu_ticks(listener.pid)
        for _ in range(WARM):
            await enclave.exec(TRUE, system=True)
        cpu_ms = (cpu_ticks(listener.pid) - ticks) * 1000 / TICKS_PER_S / WARM
        begun = time.perf_counter()
        done = await asyncio.gather(*(enclave.exec(TRUE, system=True) for _ in range(AT_ONCE)))
        at_once_ms = (time.perf_counter() - begun) * 1000
    for _ in range(COLD):
        begun = time.perf_counter()
        async with make() as enclave:
            await enclave.exec(TRUE, system=True)
        cold.append((time.perf_counter() - begun) * 1000)
    median, local = statistics.median(warm), statistics.median(spawned)
    succeeded = sum(result.status == 0 for result in done)
    return [
        Figure("exec true, warm: median", median, "ms", "< 3", peer="a subprocess here", ratio=local / median),
        Figure("exec true, warm: p99", sorted(warm)[len(warm) * 99 // 100], "ms", "< 10"),
        Figure("a subprocess here: median", local, "ms"),
        Figure("a subprocess here: p99", sorted(spawned)[len(spawned) * 99 // 100], "ms"),
        Figure("exec true, warm: CPU of the listener", cpu_ms, "ms"),
        Figure("exec true, cold: median", statistics.median(cold), "ms", "< 60"),
        Figure(f"{AT_ONCE} exec true at once: succeeded", succeeded, "", str(AT_ONCE)),
        Figure(f"{AT_ONCE} exec true at once", at_once_ms, "ms"),
    ]


def cpu_ticks(pid: int) -> int:
    """Return what the process has used, user and system."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def measure_large_file(
    directory: Path, make: Maker, flags: list[str | Path], label: str, size: int
) -> Iterator[Figure]:
    source, target, back = directory / "source", directory / "app/target", directory / "back"
    with open(source, "wb") as out:
        for _ in range(size >> 20):
            out.write(os.urandom(1 << 20))

    async def copy(inwards: bool) -> float:
        async with make() as enclave:
            (target if inwards else back).unlink(missing_ok=True)  # freeing what is replaced is no part of the peers'
            begun = time.perf_counter()
            await (enclave.put(source, "/target") if inwards else enclave.get("/target", back))
            return time.perf_counter() - begun

    def program(*argv: str | Path) -> float:
        begun = time.perf_counter()
        subprocess.run(argv, check=True, stderr=subprocess.DEVNULL)
        return time.perf_counter() - begun

    plain, inwards, outwards = [], [], []
    for _ in range(ROUNDS):  # in turn, so that what else the machine does falls on all of them
        plain.append(openssl_seconds(directory, source))
        inwards.append(asyncio.run(copy(True)))
        outwards.append(asyncio.run(copy(False)))
    peer = size / 1e6 / min(plain)
    yield Figure(f"openssl s_client to s_server, {label}", peer, "MB/s")
    for name, took in (("into", inwards), ("out of", outwards)):
        rate = size / 1e6 / min(took)
        yield Figure(f"a file of {label} {name} the enclave", rate, "MB/s", "0.8 x", peer="openssl", ratio=rate / peer)
    if (missing := missing_ssh()) is not None:
        yield Figure(f"scp on loopback: there is no {missing}", 0, "MB/s")
    else:
        ours, theirs = [], []
        with ssh_server(directory) as scp:
            for _ in range(ROUNDS):  # programs from start to end, both
                theirs.append(program(*scp, source, f"127.0.0.1:{directory}/scp"))
                (directory / "scp").unlink()
                target.unlink()
                ours.append(program("pipeline", "cp", *flags, source, f"{CID}:/target"))
        yield Figure(f"scp on loopback, {label}", size / 1e6 / min(theirs), "MB/s")
        rate = size / 1e6 / min(ours)
        yield Figure(f"pipeline cp, {label}", rate, "MB/s", "1.5 x", peer="scp", ratio=min(theirs) / min(ours))
    for path in (source, target, back):
        path.unlink()


async def measure_small_files(directory: Path, make: Maker) -> list[Figure]:
    many = directory / "many"
    for number in range(SMALL_FILES):
        path = many / str(number % SMALL_DIRECTORIES) / str(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(SMALL_BYTES))
    singles = []
    for number in range(SINGLES):
        begun = time.perf_counter()
        async with make() as enclave:
            await enclave.put(many / str(number) / str(number), f"/single{number}")
        singles.append(time.perf_counter() - begun)
    expected = statistics.median(singles) * SMALL_FILES
    figures = []
    async with make() as enclave:
        for name in ("into", "out of"):
            begun = time.perf_counter()
            await (enclave.put(many, "/many") if name == "into" else enclave.get("/many", directory / "many-back"))
            took = time.perf_counter() - begun
            peer = "a connection per file"
            figures.append(
                Figure(f"{SMALL_FILES} files {name} the enclave", took, "s", "5 x", peer=peer, ratio=expected / took)
            )
    for path in (many, directory / "many-back", directory / "app/many"):
        shutil.rmtree(path)
    return figures


async def measure_memory(make: Maker, listener: subprocess.Popen[bytes]) -> list[Figure]:
    """Send data to a command and take it back: the listener's memory meanwhile."""
    copies_kib = memory_kib(listener.pid, "status", "VmHWM")  # of all that was measured before
    Path(f"/proc/{listener.pid}/clear_refs").write_text("5")  # the peak counts from now; proc(5)
    shares = []
    async with make() as enclave, enclave.start(["/bin/cat"], stdin=True, system=True) as process:

        async def send() -> None:
            chunk = bytes(STREAM_CHUNK)
            for _ in range(STREAMED_BYTES // STREAM_CHUNK):
                await process.write(chunk)
            await process.close_stdin()

        sending = asyncio.create_task(send())
        received = looked = 0
        async for part in process.stdout:
            received += len(part)
            if received - looked > STREAMED_BYTES // 50:
                looked = received
                shares.append(memory_kib(listener.pid, "smaps_rollup", "Pss"))
        await sending
        await process.wait()
    gigabytes = f"{received / 1e9:.0f} GB there and back"
    return [
        Figure("listener, most resident: all of the above", copies_kib / 1024, "MiB", "< 40"),
        Figure(
            *(f"listener, most resident: {gigabytes}", memory_kib(listener.pid, "status", "VmHWM") / 1024),
            *("MiB", "< 40"),
        ),
        Figure(f"listener, its share of memory: {gigabytes}", max(shares) / 1024, "MiB", "< 40"),
    ]


def memory_kib(pid: int, file: str, field: str) -> int:
    for line in Path(f"/proc/{pid}/{file}").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1])
    raise ValueError(f"/proc/{pid}/{file} has no {field}")
