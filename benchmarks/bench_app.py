# SPDX-License-Identifier: Apache-2.0
"""An app of 1 GB from an archive: the whole build's speed and peak memory, and packing beside `cpio | zstd`."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import big_images
from enclavekit_rbuilds.app.directory import read_directory
from enclavekit_rbuilds.image.ramdisk import ZSTD_LEVEL, pack_app
from run import Figure

APP_BYTES = 10**9
SMALL_FILES = 20_000
PACKED_BYTES = 300 * 10**6
PEER = f"set -o pipefail; find . -print0 | sort -z | cpio --quiet -0 -o -H newc | zstd -q -{ZSTD_LEVEL} -T2"


def measure() -> Iterator[Figure]:
    with tempfile.TemporaryDirectory(prefix="enclavekit-bench-") as directory:
        work = Path(directory)
        big_images.write_image(work / "image.tar", APP_BYTES, SMALL_FILES)
        started = time.monotonic()
        image, peak = big_images.build_with_peak(work / "image.tar", work)
        rate = APP_BYTES / 1e6 / (time.monotonic() - started)
        image.unlink()
        yield Figure("app: build of a 1 GB archive", rate, "MB/s")
        yield Figure("app: peak memory of that build", peak, "MB", target="under 300")
        (work / "image.tar").unlink()
        root = make_root(work / "root")
        started = time.monotonic()
        pack_app(read_directory(str(root)), [], str(work / "ours"), "zstd")
        ours = PACKED_BYTES / 1e6 / (time.monotonic() - started)
        theirs = measure_peer(root, work / "theirs")
        ratio = ours / theirs if theirs else None
        yield Figure("app: packing a directory", ours, "MB/s", "300 on two free cores", "cpio | zstd", ratio)


def make_root(root: Path) -> Path:
    """Make a directory of programs: this machine's own, which compress as an app does, in files of their sizes."""
    root.mkdir()
    left = PACKED_BYTES
    sources = [path for path in sorted(Path("/usr").rglob("*")) if path.is_file() and not path.is_symlink()]
    for number, source in enumerate(sources):
        size = source.stat().st_size
        if size <= left:
            folder = root / str(number // 500)
            folder.mkdir(exist_ok=True)
            shutil.copyfile(source, folder / f"{number}-{source.name}")
            left -= size
    return root


def measure_peer(root: Path, target: Path) -> float | None:
    if not shutil.which("cpio") or not shutil.which("zstd"):
        return None
    with target.open("wb") as out:
        started = time.monotonic()
        subprocess.run(["bash", "-c", PEER], cwd=root, stdout=out, check=True)
    return PACKED_BYTES / 1e6 / (time.monotonic() - started)
