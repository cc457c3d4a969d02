# SPDX-License-Identifier: Apache-2.0
"""Image archives of any size, made as fast as the disk writes, and a build of one with its peak memory.

Their content does not compress: blocks of random bytes, longer apart than a compressor of ours looks back.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

BLOCK_BYTES = 16 << 20  # zstd level 3 looks back 2 MiB
LARGE_FILE_BYTES = 64 << 20
SMALL_FILE_BYTES = 200
SMALL_PER_DIRECTORY = 500

# the peak of this process alone: what wait4() reports includes its parent, whose memory fork() shares
BUILD = """
import re, sys
from enclavekit_rbuilds import cli
from enclavekit_rbuilds.framework import bytecode
bytecode.compile_modules = lambda *_: None  # the framework is a few files here, and no Python is among them
status = cli.main(sys.argv[1:])
print("peak", re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
sys.exit(status)
"""


def layer_parts(total_bytes: int, small_files: int) -> Iterator[bytes]:
    """Yield a layer of a program, `small_files` files and large ones, about `total_bytes` together."""
    block = os.urandom(BLOCK_BYTES)

    def header(name: str, size: int, mode: int = 0o644) -> bytes:
        info = tarfile.TarInfo(name)
        info.size, info.mode = size, mode
        return info.tobuf(tarfile.USTAR_FORMAT)

    yield header("bin/app", 4, 0o755) + b"#!x\n".ljust(512, b"\0")
    for number in range(small_files):
        start = number * 37 % (BLOCK_BYTES - SMALL_FILE_BYTES)
        name = f"srv/{number // SMALL_PER_DIRECTORY}/file-{number}"
        yield header(name, SMALL_FILE_BYTES) + block[start : start + SMALL_FILE_BYTES].ljust(512, b"\0")
    left, number = total_bytes - small_files * SMALL_FILE_BYTES, 0
    while left > 0:
        size = min(left, LARGE_FILE_BYTES)
        yield header(f"var/large-{number}", size)
        for start in range(0, size, BLOCK_BYTES):
            piece = block[: min(BLOCK_BYTES, size - start)]
            yield piece + bytes(-len(piece) % 512)
        left, number = left - size, number + 1
    yield bytes(1024)


def write_image(path: Path, total_bytes: int, small_files: int = 0) -> None:
    """Write a docker-save archive of one layer."""
    digest = hashlib.sha256()
    with path.open("wb") as out:
        placeholder = tarfile.TarInfo("layer.tar")
        out.write(bytes(512))
        size = 0
        for part in layer_parts(total_bytes, small_files):
            digest.update(part)
            out.write(part)
            size += len(part)
        out.write(bytes(-size % 512))
        config = {
            "architecture": "amd64", "os": "linux", "config": {"Cmd": ["/bin/app"]},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest.hexdigest()}"]},
        }  # fmt: skip
        with tarfile.open(fileobj=out, mode="w") as archive:
            for name, document in (
                ("config.json", config),
                ("manifest.json", [{"Config": "config.json", "Layers": ["layer.tar"]}]),
            ):
                raw = json.dumps(document).encode()
                info = tarfile.TarInfo(name)
                info.size = len(raw)
                archive.addfile(info, io.BytesIO(raw))
        placeholder.size = size
        out.seek(0)
        out.write(placeholder.tobuf(tarfile.GNU_FORMAT))  # GNU's form holds more than 8 GiB


def build_with_peak(archive: Path, directory: Path) -> tuple[Path, float]:
    """Run `rbuilds build --archive` with a framework of one file; return the image and the peak memory in MB."""
    framework, kernel, image = directory / "framework", directory / "kernel", directory / "app.eif"
    (framework / "usr/bin").mkdir(parents=True, exist_ok=True)
    (framework / "usr/bin/python3").write_text("not really\n")
    kernel.write_bytes(b"KERNEL" * 100)
    words = ["build", "--archive", archive, "--framework-rootfs", framework, "--kernel", kernel, "--output", image]
    done = subprocess.run(
        [sys.executable, "-c", BUILD, *map(str, words)],
        env={**os.environ, "XDG_CACHE_HOME": str(directory / "cache")},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"rbuilds failed: {done.stderr[-2000:]}")
    return image, int(done.stdout.split("peak ")[1]) / 1000
