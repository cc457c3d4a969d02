# SPDX-License-Identifier: Apache-2.0
"""Copies into and out of the demo's image: many small files beside one connection per file, differences, resumption."""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from bench_enclave import APP, run
from enclavekit_pipeline import Enclave
from run import Figure

FILES, FILE_BYTES, DIRECTORIES = 10_000, 1000, 100
SINGLE_ROUNDS = 50
LARGE_BYTES = 256 << 20
BLOCK_BYTES = 1 << 20


def measure() -> Iterator[Figure]:
    with tempfile.TemporaryDirectory(prefix="enclavekit-bench-") as name:
        directory = Path(name)
        run(directory, APP / "make_rootfs", "rootfs")
        run(directory, "pipeline", "keygen", "--name", "bench", "-o", "keys")
        run(
            *(directory, "rbuilds", "build", "--rootfs", "rootfs", "--config", APP / "enclave.yaml"),
            *("--authorize", "keys/bench.crt:all", "--output", "bench.eif"),
        )
        words = ("nitro-emu", "run-enclave", "--eif-path", "bench.eif", "--memory", 2048, "--cpu-count", 2)
        enclave = json.loads(run(directory, *words))
        try:
            yield from measure_copies(directory, enclave["EnclaveCID"])
        finally:
            run(directory, "nitro-emu", "terminate-enclave", "--enclave-id", enclave["EnclaveID"])


def measure_copies(directory: Path, cid: int) -> Iterator[Figure]:
    root = run(directory, "nitro-emu", "dev-root").strip()
    command = ("pipeline", "cp", "--eif", "bench.eif", "--identity", "keys/bench", "--insecure-dev-root", root)

    def timed(*argv: object) -> float:
        started = time.monotonic()
        run(directory, *command, *argv)
        return time.monotonic() - started

    for number in range(FILES):
        path = directory / "many" / str(number % DIRECTORIES) / str(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(FILE_BYTES))
    single = asyncio.run(one_by_one(directory, cid, root))
    peer = "a connection per file, in one process"
    for what, argv in (
        ("in", ("many", f"{cid}:/data/many")),
        ("out", (f"{cid}:/data/many", "back")),
        ("in, --delta, nothing new", ("--delta", "many/.", f"{cid}:/data/many")),
    ):
        took = timed(*argv)
        ratio = single * FILES / took
        yield Figure(f"{FILES} files {what}", took, "s", target="5 times faster", peer=peer, ratio=ratio)
    yield Figure("one file, a program of its own", timed("many/0/0", f"{cid}:/data/one"), "s")
    with open(directory / "large", "wb") as file:
        for _ in range(LARGE_BYTES // BLOCK_BYTES):
            file.write(os.urandom(BLOCK_BYTES))
    for what, argv in (("in", ("large", f"{cid}:/data/large")), ("out", (f"{cid}:/data/large", "large-back"))):
        yield Figure(f"large file {what}", LARGE_BYTES / 1e6 / timed(*argv), "MB/s")
    yield Figure("large file again, --delta", timed("--delta", "large", f"{cid}:/data/large"), "s")


async def one_by_one(directory: Path, cid: int, root: str) -> float:
    """Return the seconds that a file takes with a connection of its own, without starting a program for it."""
    enclave = Enclave(cid=cid, eif=directory / "bench.eif", identity=directory / "keys/bench", insecure_dev_root=root)
    taken = []
    for number in range(SINGLE_ROUNDS):
        started = time.monotonic()
        async with enclave:
            await enclave.put(directory / "many" / str(number) / str(number), f"/data/one{number}")
        taken.append(time.monotonic() - started)
    return statistics.median(taken)
