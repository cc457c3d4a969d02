# SPDX-License-Identifier: Apache-2.0
"""pipeline into the demo's image, as processes and as a virtual machine: commands on an open and a new connection, a
hundred at once, a file each way.

The virtual machine's kernel is its own, its vsock our device; where there is no KVM, QEMU translates what runs in it,
which is what its figures show.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from bench_enclave import build, run
from enclavekit_pipeline import Enclave
from run import Figure

TRUE = ["busybox", "true"]
WARM, COLD, AT_ONCE = 200, 10, 100
FILE_BYTES = 64 << 20
LABELS = {
    "warm": ("exec, warm: median", "ms"),
    "p99": ("exec, warm: p99", "ms"),
    "cold": ("exec, cold: median", "ms"),
    "measured": ("the same, the image measured each time", "ms"),
    "crowd": (f"{AT_ONCE} exec at once: succeeded", ""),
    "in": ("a file of 64 MiB into it", "MB/s"),
    "out": ("a file of 64 MiB out of it", "MB/s"),
}


def measure() -> Iterator[Figure]:
    with tempfile.TemporaryDirectory(prefix="enclavekit-bench-") as name:
        directory = Path(name)
        build(directory)
        (directory / "source").write_bytes(os.urandom(FILE_BYTES))
        machines = ["process"] if shutil.which("qemu-system-x86_64") is None else ["process", "qemu"]
        for machine in machines:
            start = ("nitro-emu", "run-enclave", "--eif-path", "bench.eif", "--memory", 2048, "--cpu-count", 2)
            enclave = json.loads(run(directory, *start, "--machine", machine))
            try:
                known, measured = makers(directory, enclave["EnclaveCID"])
                found = asyncio.run(measure_machine(directory, known, measured))
            finally:
                run(directory, "nitro-emu", "terminate-enclave", "--enclave-id", enclave["EnclaveID"])
            for key, value in found.items():
                label, unit = LABELS[key]
                yield Figure(f"machine {machine}: {label}", value, unit)


def makers(directory: Path, cid: int) -> tuple[Callable[[], Enclave], Callable[[], Enclave]]:
    """Return what makes a connection: by registers that are known, and by the image."""
    described = json.loads(run(directory, "eif", "describe", "bench.eif"))["Measurements"]
    pcrs = {index: bytes.fromhex(described[f"PCR{index}"]) for index in range(3)}
    root = run(directory, "nitro-emu", "dev-root").strip()
    make = partial(Enclave, cid=cid, identity=directory / "keys/bench", insecure_dev_root=root, connect_timeout_s=60)
    return partial(make, pcrs=pcrs), partial(make, eif=directory / "bench.eif")


async def measure_machine(
    directory: Path, make: Callable[[], Enclave], make_measured: Callable[[], Enclave]
) -> dict[str, float]:
    async def one(enclave: Enclave) -> float:
        begun = time.perf_counter()
        result = await enclave.exec(TRUE, system=True)
        if result.status:
            raise RuntimeError(f"it ended with {result.status}")
        return (time.perf_counter() - begun) * 1000

    async def anew(make: Callable[[], Enclave]) -> float:
        begun = time.perf_counter()
        async with make() as enclave:
            await one(enclave)
        return (time.perf_counter() - begun) * 1000

    async with make() as enclave:
        await one(enclave)
        warm = [await one(enclave) for _ in range(WARM)]
        crowd = await asyncio.gather(*(one(enclave) for _ in range(AT_ONCE)), return_exceptions=True)
        rates = []
        for copy in (enclave.put(directory / "source", "/data/file"), enclave.get("/data/file", directory / "back")):
            begun = time.perf_counter()
            await copy
            rates.append(FILE_BYTES / 1e6 / (time.perf_counter() - begun))
    cold = [await anew(make) for _ in range(COLD)]
    measured = [await anew(make_measured) for _ in range(COLD)]
    return {
        "warm": statistics.median(warm),
        "p99": statistics.quantiles(warm, n=100)[98],
        "cold": statistics.median(cold),
        "measured": statistics.median(measured),
        "crowd": sum(isinstance(took, float) for took in crowd),
        "in": rates[0],
        "out": rates[1],
    }
