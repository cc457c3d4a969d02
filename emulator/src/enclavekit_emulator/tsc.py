# SPDX-License-Identifier: Apache-2.0
"""The frequency of this machine's time stamp counter, which a guest under TCG counts its time by.

A microvm has no other clock that a kernel could measure it with: the timer chip's interrupt does not arrive, and
counting its registers fails on a busy machine; the kernel then waits for ever. So it is told (tsc_early_khz).
"""

from __future__ import annotations

import ctypes
import mmap
import platform
import time
from collections.abc import Callable

READ_TSC = bytes.fromhex("0f3148c1e2204809d0c3")  # rdtsc; shl rdx, 32; or rax, rdx; ret
SAMPLES = 50  # the one that was least disturbed counts
INTERVAL_S = 0.05


def measure_tsc_khz() -> int | None:
    """Return kHz; None where there is no such counter or no memory may be executed."""
    if platform.machine() != "x86_64":
        return None
    try:
        with mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC) as page:
            page.write(READ_TSC)
            buffer = ctypes.c_char.from_buffer(page)
            read = ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(buffer))
            try:
                first = _sample(read)
                time.sleep(INTERVAL_S)
                second = _sample(read)
            finally:
                del read, buffer  # the page cannot be closed while something points into it
    except (OSError, ValueError):
        return None
    return round((second[1] - first[1]) * 1_000_000 / (second[0] - first[0]))


def _sample(read: Callable[[], int]) -> tuple[int, int]:
    """Return (nanoseconds, counter) of one moment."""
    best = (1 << 62, 0, 0)
    for _ in range(SAMPLES):
        before = time.monotonic_ns()
        counter = read()
        after = time.monotonic_ns()
        best = min(best, (after - before, (before + after) // 2, counter))
    return best[1], best[2]
