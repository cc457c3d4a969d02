# SPDX-License-Identifier: Apache-2.0
"""A build's memory does not grow with the app's bytes, and grows by little with the number of its files."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
BOUND_MB = 300
GROWTH_MB = 25  # of the allocator; the compressor's buffers are full long before the smaller size
PER_FILE_BYTES = 400


@pytest.fixture(scope="module")
def images_maker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("big_images", ROOT / "benchmarks/big_images.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def peak_of(maker: ModuleType, directory: Path, total_bytes: int, small_files: int = 0) -> float:
    directory.mkdir()
    maker.write_image(directory / "image.tar", total_bytes, small_files)
    image, peak = maker.build_with_peak(directory / "image.tar", directory)
    assert image.stat().st_size > 0.9 * total_bytes  # it is all there, and hardly compresses
    shutil.rmtree(directory)
    return float(peak)


def test_memory_does_not_grow_with_the_bytes(images_maker: ModuleType, tmp_path: Path) -> None:
    small, large = (peak_of(images_maker, tmp_path / str(size), size << 20) for size in (96, 224))
    assert large < BOUND_MB and large - small < GROWTH_MB, (small, large)


def test_memory_grows_little_with_the_files(images_maker: ModuleType, tmp_path: Path) -> None:
    few, many = (peak_of(images_maker, tmp_path / str(count), 1 << 20, count) for count in (100, 40_000))
    assert (many - few) * 1e6 < 40_000 * PER_FILE_BYTES + 10e6, (few, many)


@pytest.mark.long
def test_five_gigabytes_and_a_hundred_thousand_files(images_maker: ModuleType, tmp_path: Path) -> None:
    if shutil.disk_usage(tmp_path).free < 25 << 30:
        pytest.skip("needs 25 GB of disk: the archive, the ramdisk in the cache, and the image")
    peak = peak_of(images_maker, tmp_path / "five", 5 * 10**9, 100_000)
    assert peak < BOUND_MB
