# SPDX-License-Identifier: Apache-2.0
"""glibc's allocator in services with threads. Source: mallopt(3)."""

from __future__ import annotations

import ctypes

M_ARENA_MAX = -8  # malloc.h


def use_one_arena() -> None:
    """Let all threads share one heap; call it before there are any. Elsewhere than with glibc nothing happens.

    glibc gives each thread that finds the heap in use one of its own, and keeps what is freed in it: a service whose
    threads take turns at large buffers would hold each of them several times.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_ARENA_MAX, 1)
