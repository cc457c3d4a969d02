# SPDX-License-Identifier: Apache-2.0
"""How much memory an image gets if nobody says so, the sum in words, and how it divides into huge pages. Pure.

Source of the last: nitro-cli; the largest that fit first, then the smallest upwards for what is left; all from one
NUMA node.
"""

from __future__ import annotations

from enclavekit_eif.size import Size

# a virtual machine with all three idle had 118 MiB in use beside its file system, the kernel's own included
INIT_MIB = 16
SERVICE_MIB = 40
APP_MIB = 64  # for an app of which nothing is known; one that needs more says so in enclave.yaml


def default_memory_mib(size: Size, services: int) -> int:
    """Return what an image is run with if neither a flag nor the image says how much."""
    return size.needed_mib + INIT_MIB + services * SERVICE_MIB + APP_MIB


def memory_sum(size: Size) -> str:
    """Return the rule that decides, in words, e.g. `156 MiB (nitro-cli (E26): 4 x 39 MiB of image)`."""
    rule, words, mib = max(size.arithmetic(), key=lambda row: row[2])
    return f"{mib} MiB ({rule}: {words})"


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
