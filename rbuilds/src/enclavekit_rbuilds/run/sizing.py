# SPDX-License-Identifier: Apache-2.0
"""How much memory an image needs, and how that divides into huge pages; the sums in words. Pure.

Source: nitro-cli's run-enclave rules (EIF_MEMORY_RATIO 4, driver minimum 64 MiB); huge pages: the largest that fit
first, then the smallest upwards for what is left; all from one NUMA node.
"""

from __future__ import annotations

MIB = 1 << 20
MEMORY_PER_IMAGE = 4
MIN_MEMORY_MIB = 64


def image_mib(size_bytes: int) -> int:
    return -(-size_bytes // MIB)


def needed_memory_mib(size_bytes: int) -> int:
    """Return the least memory that run-enclave accepts for an image of this size."""
    return max(MEMORY_PER_IMAGE * image_mib(size_bytes), MIN_MEMORY_MIB)


def memory_sum(size_bytes: int) -> str:
    """Return the sum in words, e.g. `4 x 39 MiB = 156 MiB`."""
    text = f"{MEMORY_PER_IMAGE} x {image_mib(size_bytes)} MiB = {MEMORY_PER_IMAGE * image_mib(size_bytes)} MiB"
    if MEMORY_PER_IMAGE * image_mib(size_bytes) < MIN_MEMORY_MIB:
        text += f", and {MIN_MEMORY_MIB} MiB at least"
    return text


def allocate_pages(memory_mib: int, free_kib: dict[int, int]) -> dict[int, int] | None:
    """Return page size in KiB -> pages that nitro-cli would take on one node; None if they do not suffice.

    Args:
        free_kib: page size in KiB -> number of free pages on that node.
    """
    left = memory_mib * 1024
    taken: dict[int, int] = {}
    for size in sorted(free_kib, reverse=True):
        count = min(left // size, free_kib[size])
        if count:
            taken[size] = count
            left -= count * size
    for size in sorted(free_kib):
        spare = free_kib[size] - taken.get(size, 0)
        count = min(-(-left // size), spare) if left > 0 else 0
        if count:
            taken[size] = taken.get(size, 0) + count
            left -= count * size
    return taken if left <= 0 else None


def pages_mib(pages: dict[int, int]) -> int:
    return sum(size * count for size, count in pages.items()) // 1024


def describe_pages(pages: dict[int, int]) -> str:
    """Return e.g. `1 x 1 GiB + 3 x 2 MiB`."""
    return " + ".join(f"{count} x {page_name(size)}" for size, count in sorted(pages.items(), reverse=True)) or "none"


def page_name(size_kib: int) -> str:
    if size_kib % (1 << 20) == 0:
        return f"{size_kib >> 20} GiB"
    return f"{size_kib >> 10} MiB" if size_kib >= 1024 else f"{size_kib} KiB"
