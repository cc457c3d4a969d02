# SPDX-License-Identifier: Apache-2.0
"""glibc's allocator in services with threads. Source: mallopt(3)."""

from __future__ import annotations

import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # malloc.h


def use_one_arena() -> None:
    """Let all threads share one heap; call it before there are any. Elsewhere than with glibc nothing happens.

    glibc gives each thread that finds the heap in use one of its own, and keeps what is freed in it: a service whose
    threads take turns at large buffers would hold each of them several times.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_ARENA_MAX, 1)


def keep_freed(most_bytes: int) -> None:
    """Let what is freed be used again: up to `most_bytes` at the end of the heap, and buffers of up to half of that.

    Otherwise glibc gives buffers of some 100 KiB back to the kernel, which clears their pages for the next time: that
    costs more than to copy what comes into them.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, most_bytes // 2)
        mallopt(M_TRIM_THRESHOLD, most_bytes)
