# SPDX-License-Identifier: Apache-2.0
"""An image from a ready root file system of 1 GB, beside `cpio | gzip -n` and `bsdtar` on the same tree."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from run import Figure

TREE_BYTES = 10**9
SEED = 1
# the sizes of files in a root file system: many small ones, and most of the bytes in few large ones
FILE_BYTES = (500, 2_000, 2_000, 8_000, 8_000, 30_000, 120_000, 3_000_000)
LARGEST_BYTES = 100_000_000
POOL_BYTES = 64 << 20
PER_DIRECTORY = 200

# A process of its own, so that its peak memory is that of the work. The peak of wait4() would include this process's,
# whose memory fork() shares.
ASSEMBLE = """
import os, re, sys, time
from enclavekit_eif.metadata import make_metadata
from enclavekit_eif.writer import write_eif
from enclavekit_rbuilds.image.ramdisk import pack_directory
tree, work, compression = sys.argv[1:]
started = time.monotonic()
pack_directory(tree, f"{work}/app", compression)
packed = time.monotonic()
write_eif(f"{work}/app.eif", kernel=f"{work}/kernel", cmdline=b"console=ttyS0",
          ramdisks=[f"{work}/first", f"{work}/app"], metadata=make_metadata("bench", "1"))
done = time.monotonic()
peak = re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]
print(packed - started, done - packed, time.process_time(), peak)
"""
# `cpio | gzip -n` is what people write by hand; gzip has one thread, so the others get it uncompressed and with zstd
LIST = "find . -print0 | LC_ALL=C sort -z"
PEERS = {
    "none": (("cpio", f"{LIST} | cpio --quiet -0 -o -H newc"), ("bsdtar", "bsdtar --format newc -cf - .")),
    "gzip": (("cpio | gzip -n", f"{LIST} | cpio --quiet -0 -o -H newc | gzip -n"),),
    "zstd": (("cpio | zstd -T2", f"{LIST} | cpio --quiet -0 -o -H newc | zstd -q -3 -T2"),),
}
TARGETS = {"none": "300 or more on two free cores"}
RUNS = {"none": 3}  # the best of them, else one: other work on the machine only ever adds time, and gzip is slow


def measure() -> Iterator[Figure]:
    with tempfile.TemporaryDirectory(prefix="enclavekit-bench-") as directory:
        work = Path(directory)
        tree, size = work / "tree", make_tree(work / "tree")
        (work / "kernel").write_bytes(os.urandom(10_000_000))
        (work / "first").write_bytes(b"\0" * 512)
        for compression, peers in PEERS.items():
            runs = RUNS.get(compression, 1)
            pack, write, cpu, peak = min(
                (assemble(tree, work, compression) for _ in range(runs)), key=lambda run: run[0] + run[1]
            )
            name = {"none": "uncompressed"}.get(compression, compression)
            total = size / 1e6 / (pack + write)
            yield Figure(f"eif: image of 1 GB, {name}", total, "MB/s", TARGETS.get(compression, ""))
            yield Figure(f"eif: CPU time of that, {name}", cpu, "s")
            yield Figure(f"eif: peak memory of that, {name}", peak, "MB", "constant; under 300")
            for label, command in peers:
                if not all(shutil.which(tool) for tool in ("cpio", "bsdtar", "zstd")):
                    break  # apt-get install cpio libarchive-tools zstd
                theirs = min(peer(command, tree, work / "peer") for _ in range(runs))
                yield Figure(f"eif: packing only, {name}", size / 1e6 / pack, "MB/s", peer=label, ratio=theirs / pack)
                yield Figure(f"eif: whole image, {name}", total, "MB/s", peer=label, ratio=theirs / (pack + write))


def make_tree(root: Path) -> int:
    """Make a tree of this machine's programs cut into files of all sizes; return the sum of their sizes."""
    pool = read_pool()
    dice = random.Random(SEED)
    total = number = 0
    while total < TREE_BYTES:
        size = LARGEST_BYTES if number % 2000 == 1999 else int(dice.choice(FILE_BYTES) * dice.uniform(0.2, 1.8))
        size = min(size, TREE_BYTES - total)
        folder = root / str(number // PER_DIRECTORY)
        if number % PER_DIRECTORY == 0:
            folder.mkdir(parents=True)
        start = dice.randrange(len(pool))
        with (folder / f"file-{number}").open("wb") as out:
            left = size
            while left:
                left -= out.write(pool[start : start + left])
                start = 0
        total, number = total + size, number + 1
    return total


def read_pool() -> bytes:
    """Return bytes that compress as programs do: this machine's own."""
    found = bytearray()
    for path in [*sorted(Path("/usr").rglob("*.so*")), Path(sys.executable).resolve()]:
        if len(found) < POOL_BYTES and path.is_file() and not path.is_symlink():
            found += path.read_bytes()
    return bytes(found[:POOL_BYTES])


def assemble(tree: Path, work: Path, compression: str) -> tuple[float, float, float, float]:
    """Return the seconds of packing and of writing the image, the CPU seconds, and the peak memory in MB."""
    argv = [sys.executable, "-c", ASSEMBLE, str(tree), str(work), compression]
    pack, write, cpu, peak = subprocess.run(argv, check=True, capture_output=True, text=True).stdout.split()
    for name in ("app", "app.eif"):
        (work / name).unlink()
    return float(pack), float(write), float(cpu), int(peak) / 1000


def peer(command: str, tree: Path, target: Path) -> float:
    """Return the seconds that a peer takes."""
    started = time.monotonic()
    with target.open("wb") as out:
        subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], cwd=tree, stdout=out, check=True)
    taken = time.monotonic() - started
    target.unlink()
    return taken
