# SPDX-License-Identifier: Apache-2.0
"""Connects the guest to what it asks for, without waiting: a virtual machine's answer comes through the event loop."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from enclavekit_emulator.sibling_dial import Dialled, dial, read_answer
from enclavekit_emulator.vsock_device.device import Answer

if TYPE_CHECKING:
    from enclavekit_emulator.vsock_device.backend import Backend

ANSWER_TIMEOUT_S = 12.0  # a little more than the other machine's device gives its guest
MAX_WAITING = 256


class FabricDial:
    """The `Dial` of one guest; `expire` is to be called now and then."""

    def __init__(self, guest_cid: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._guest_cid, self._clock = guest_cid, clock
        self._waiting: dict[int, tuple[Dialled, Answer, float]] = {}
        self.backend: Backend | None = None
        """Set by the owner once it exists: each needs the other."""

    @property
    def next_deadline(self) -> float | None:
        return next((deadline for _, _, deadline in self._waiting.values()), None)  # the oldest is the first to end

    def __call__(self, cid: int, port: int, answer: Answer) -> None:
        """Answer with a socket connected to `cid`:`port`, or None."""
        assert self.backend is not None
        if len(self._waiting) >= MAX_WAITING:
            answer(None)
            return
        try:
            dialled = dial(self._guest_cid, cid, port)
        except OSError:
            answer(None)
            return
        if not dialled.is_asked:
            answer(dialled.sock)
            return
        fd = dialled.sock.fileno()
        self._waiting[fd] = dialled, answer, self._clock() + ANSWER_TIMEOUT_S
        self.backend.watch(fd, lambda: self._on_answer(fd))

    def _on_answer(self, fd: int) -> None:
        dialled, answer, _ = self._end_wait(fd)
        if read_answer(dialled.sock):
            answer(dialled.sock)
        else:
            dialled.sock.close()
            answer(None)

    def expire(self) -> None:
        """Give up what has waited too long."""
        now = self._clock()
        for fd in [fd for fd, (_, _, deadline) in self._waiting.items() if deadline <= now]:
            dialled, answer, _ = self._end_wait(fd)
            dialled.sock.close()
            answer(None)

    def _end_wait(self, fd: int) -> tuple[Dialled, Answer, float]:
        assert self.backend is not None
        self.backend.unwatch(fd)
        return self._waiting.pop(fd)
