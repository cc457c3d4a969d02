# SPDX-License-Identifier: Apache-2.0
"""The demo's image in the process machine: its size, PID 1's memory, from run-enclave to the first answer of exec."""

from __future__ import annotations

import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from enclavekit_eif.cpio import open_ramdisk
from enclavekit_eif.reader import read_eif
from run import Figure

APP = Path(__file__).resolve().parent.parent / "reference_apps" / "notes"
ROUNDS = 3
EXEC_ROUNDS = 10


def measure() -> Iterator[Figure]:
    with tempfile.TemporaryDirectory(prefix="enclavekit-bench-") as name:
        directory = Path(name)
        yield Figure("image: build", build(directory), "s")
        yield Figure("image: file", (directory / "bench.eif").stat().st_size / 1e6, "MB")
        yield Figure(
            *("image: uncompressed", uncompressed_bytes(directory / "bench.eif") / 1e6, "MB"), target="under 120 MB"
        )
        yield from measure_runs(directory)


def build(directory: Path) -> float:
    """Make bench.eif, which whoever has keys/bench may enter; return the seconds that the build took."""
    run(directory, APP / "make_rootfs", "rootfs")
    run(directory, "pipeline", "keygen", "--name", "bench", "-o", "keys")
    started = time.monotonic()
    run(
        *(directory, "rbuilds", "build", "--rootfs", "rootfs", "--config", APP / "enclave.yaml"),
        *("--authorize", "keys/bench.crt:all", "--output", "bench.eif"),
    )
    return time.monotonic() - started


def measure_runs(directory: Path) -> Iterator[Figure]:
    boots: list[float] = []
    execs: list[float] = []
    entering: list[float] = []
    rss_kib = 0
    for _ in range(ROUNDS):
        started = time.monotonic()
        run_enclave = ("nitro-emu", "run-enclave", "--eif-path", "bench.eif", "--memory", 1024, "--cpu-count", 2)
        enclave = json.loads(run(directory, *run_enclave))
        root = run(directory, "nitro-emu", "dev-root").strip()
        trust = ("--eif", "bench.eif", "--identity", "keys/bench", "--insecure-dev-root", root)
        inside = ("pipeline", "exec", "--system", *trust, enclave["EnclaveCID"], "--")
        try:
            run(directory, *inside, "busybox", "true")
            boots.append(time.monotonic() - started)
            status = run(directory, *inside, "busybox", "cat", "/proc/1/status")
            rss_kib = int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS")))
            init = first_child(enclave["ProcessID"])
            for _ in range(EXEC_ROUNDS):
                execs.append(timed(directory, *inside, "busybox", "true"))
                entering.append(timed(directory, "nsenter", "-t", init, "-m", "-p", "/bin/busybox", "true"))
        finally:
            run(directory, "nitro-emu", "terminate-enclave", "--enclave-id", enclave["EnclaveID"])
    yield Figure("run-enclave until exec answers", statistics.median(boots), "s", target="under 3 s")
    yield Figure("PID 1 resident", rss_kib / 1024, "MiB", target="under 25 MB")
    ours, theirs = statistics.median(execs), statistics.median(entering)
    yield Figure("pipeline exec true", ours, "s", peer="nsenter (unattested, local)", ratio=theirs / ours)


def first_child(pid: int) -> int:
    """Return a process of the enclave: a child of its supervisor."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(children[0]) if children else pid


def timed(directory: Path, *argv: object) -> float:
    started = time.monotonic()
    subprocess.run([str(word) for word in argv], cwd=directory, capture_output=True)
    return time.monotonic() - started


def run(directory: Path, *argv: object) -> str:
    words = [str(word) for word in argv]
    done = subprocess.run(words, cwd=directory, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{words} exited with {done.returncode}: {done.stderr[-2000:]}")
    return done.stdout


def uncompressed_bytes(path: Path) -> int:
    eif = read_eif(str(path))
    total = eif.kernel.size
    for section in eif.ramdisks:
        with eif.open_section(section) as raw, open_ramdisk(raw) as stream:
            while chunk := stream.read(1 << 20):
                total += len(chunk)
    return total
