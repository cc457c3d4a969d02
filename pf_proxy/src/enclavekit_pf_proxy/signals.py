# SPDX-License-Identifier: Apache-2.0
"""Blocked signals as events of a loop, by signalfd(2): none comes while something is half done, and none is lost."""

from __future__ import annotations

import ctypes
import os
import select
import signal
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from enclavekit_pf_proxy.loop import Loop

SIGSET_BYTES = 128  # sigset_t of glibc and musl
SFD_CLOEXEC, SFD_NONBLOCK = os.O_CLOEXEC, os.O_NONBLOCK  # signalfd(2)


class Signals:
    """A task of the loop. The signals are blocked by who makes it."""

    def __init__(self, loop: Loop, wanted: Collection[signal.Signals], caught: Callable[[int], None]) -> None:
        self._loop, self._wanted, self._caught = loop, wanted, caught
        mask = bytearray(SIGSET_BYTES)
        for number in wanted:
            mask[(number - 1) // 8] |= 1 << (number - 1) % 8  # little-endian words: x86-64, aarch64
        libc = ctypes.CDLL(None, use_errno=True)
        self._fd = libc.signalfd(-1, (ctypes.c_char * SIGSET_BYTES).from_buffer(mask), SFD_CLOEXEC | SFD_NONBLOCK)
        if self._fd < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        loop.watch(self._fd, self, 0, select.EPOLLIN)

    def notice(self, index: int, mask: int) -> None:
        pass  # `run` follows

    def run(self, now: float) -> bool:
        while (info := signal.sigtimedwait(self._wanted, 0)) is not None:
            self._caught(info.si_signo)
        return False

    def expire(self, now: float) -> float | None:
        return None

    def close(self) -> None:
        self._loop.forget(self._fd)
        os.close(self._fd)

    def give_up(self) -> None:
        """In a forked child: close its copy."""
        os.close(self._fd)
