# SPDX-License-Identifier: Apache-2.0
"""Waits: for descriptors, for times, for signals. One thread, no polling; with nothing to do it sleeps in epoll.

Signals only wake: Python runs their handlers between two instructions of the loop, so they do no more than note.
"""

from __future__ import annotations

import heapq
import itertools
import os
import selectors
import signal
import time
from collections.abc import Callable, Iterable
from typing import Any

READ, WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE


class TimerHandle:
    """A call that is due at `deadline`; made by `Reactor.call_later`."""

    __slots__ = ("callback", "deadline")

    def __init__(self, deadline: float, callback: Callable[[], None]) -> None:
        self.deadline = deadline
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        """Not call it; again, or after the call, is harmless."""
        self.callback = None


class Reactor:
    """Descriptors, timers and wake-ups."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._timers: list[tuple[float, int, TimerHandle]] = []
        self._count = itertools.count()
        self._wake, self._waker = os.pipe()
        os.set_blocking(self._wake, False)
        os.set_blocking(self._waker, False)
        self._previous: dict[int, Any] = {}  # what signal.signal returns and takes
        self.watch(self._wake, READ, lambda: _drain(self._wake))

    def watch(self, fd: int, events: int, callback: Callable[[], object]) -> None:
        """Call `callback` whenever `fd` is ready for `events` (READ, WRITE or both); in place of an earlier one."""
        if fd in self._selector.get_map():
            self._selector.modify(fd, events, callback)
        else:
            self._selector.register(fd, events, callback)

    def unwatch(self, fd: int) -> None:
        """Stop watching; harmless if it is not watched. To be called before the descriptor is closed."""
        if fd in (self._selector.get_map() or ()):
            self._selector.unregister(fd)

    def close_fd(self, *fds: int) -> None:
        """Unwatch and close."""
        for fd in fds:
            self.unwatch(fd)
            os.close(fd)

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> TimerHandle:
        """Call `callback` once, in the loop, after `delay_s`."""
        handle = TimerHandle(time.monotonic() + delay_s, callback)
        heapq.heappush(self._timers, (handle.deadline, next(self._count), handle))
        return handle

    def catch_signals(self, numbers: Iterable[int], handler: Callable[[int, object], None]) -> None:
        """Have `handler` note that a signal has come, and `wait` return then."""
        signal.set_wakeup_fd(self._waker, warn_on_full_buffer=False)
        for number in numbers:
            self._previous[number] = signal.signal(number, handler)

    def wait(self, *, at_once: bool = False) -> None:
        """Sleep until something is ready, due or signalled (or look only, if `at_once`), and make the calls."""
        for key, _mask in self._selector.select(0.0 if at_once else self._time_to_wait()):
            # one callback may close what another was ready for
            if self._selector.get_map().get(key.fd) is key:
                key.data()
        now = time.monotonic()
        due = []
        while self._timers and self._timers[0][0] <= now:
            due.append(heapq.heappop(self._timers)[2])
        for handle in due:
            # an earlier one of this round may have cancelled it
            callback, handle.callback = handle.callback, None
            if callback is not None:
                callback()

    def _time_to_wait(self) -> float | None:
        while self._timers and self._timers[0][2].callback is None:
            heapq.heappop(self._timers)
        return max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else None

    def close(self) -> None:
        """Give the signals back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if self._previous:
            signal.set_wakeup_fd(-1)
        self.close_fd(self._wake, self._waker)
        self._selector.close()


def _drain(fd: int) -> None:
    """Empty the wake-up pipe; what its bytes say, the handlers have noted."""
    try:
        while os.read(fd, 4096):
            pass
    except BlockingIOError:
        pass
