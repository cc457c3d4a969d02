# SPDX-License-Identifier: Apache-2.0
"""The event loop: one thread, edge-triggered epoll, tasks that get a share each per round.

Events are only noted when they come in; tasks then act in the order in which they became ready. So no descriptor is
closed while events of the same batch are looked at, and none starves another. Tasks with much to do, those that move
bulk data, take turns one by one, and between two of them whoever has little to do is served: a message never waits
for more than one of them.
"""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable, Hashable
from time import monotonic
from typing import Protocol

from enclavekit_pf_proxy.timers import NEVER, Timers

MAX_EVENTS = 256


class Task(Hashable, Protocol):
    """Something that owns descriptors."""

    def notice(self, index: int, mask: int) -> bool | None:
        """Events `mask` (of epoll) came in for the descriptor watched under `index`; `run` follows. Return whether it
        will have much to do.
        """

    def run(self, now: float) -> bool:
        """Do a share of what can be done without waiting; return whether there is more to do at once."""

    def expire(self, now: float) -> float | None:
        """The deadline has come; return the next one, or None."""


class Loop:
    """Runs tasks until told otherwise."""

    def __init__(self) -> None:
        self.epoll = select.epoll()
        self.timers: Timers[Task] = Timers()
        self._wakeup = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._wakeup_lock = threading.RLock()  # re-entrant: a signal handler may wake while we hold it
        self._closed = False
        self._watched: dict[int, tuple[Task, int]] = {}
        self._ready: dict[Task, None] = {}  # ordered: who waited longest goes first
        self._busy: dict[Task, None] = {}  # ordered too: those with much to do
        self.on_wake: list[Callable[[], None]] = []
        """Called in the loop after `wake`."""
        self.epoll.register(self._wakeup, select.EPOLLIN)

    def watch(self, fd: int, task: Task, index: int, events: int) -> None:
        """Tell `task` of these events, and nobody else; edges that were there already come again."""
        if fd in self._watched:
            self.epoll.modify(fd, events)
        else:
            self.epoll.register(fd, events)
        self._watched[fd] = (task, index)

    def forget(self, fd: int) -> None:
        """Stop watching `fd`, which is open still."""
        if self._watched.pop(fd, None) is not None:
            self.epoll.unregister(fd)

    def release(self, fd: int) -> None:
        """`fd` is about to be closed, which takes it out of the epoll set, for nobody else has it."""
        self._watched.pop(fd, None)

    def enqueue(self, task: Task) -> None:
        """Have `task` run in this round or the next."""
        self._ready[task] = None

    def drop(self, task: Task) -> None:
        """Never run or expire `task` again."""
        self._ready.pop(task, None)
        self._busy.pop(task, None)
        self.timers.drop(task)

    def wake(self) -> None:
        """Have `on_wake` called soon. Safe in signal handlers and other threads, and after `close`."""
        with self._wakeup_lock:
            if not self._closed:
                os.eventfd_write(self._wakeup, 1)

    def run_round(self, latest: float | None = None) -> None:
        """Wait for events, deadlines or the moment `latest`, then give every ready task and one busy one its share."""
        woken = False
        watched, ready, busy = self._watched, self._ready, self._busy
        timeout_s: float | None = 0.0
        if not ready and not busy:
            due = self.timers.earliest
            if latest is not None and latest < due:
                due = latest
            timeout_s = None if due == NEVER else max(0.0, due - monotonic())
        for fd, mask in self.epoll.poll(timeout_s, MAX_EVENTS):
            owner = watched.get(fd)
            if owner is not None:
                task, index = owner
                if task.notice(index, mask):
                    busy[task] = None
                else:
                    ready[task] = None
            elif fd == self._wakeup:
                os.eventfd_read(self._wakeup)
                woken = True
        if woken:
            for call in self.on_wake:
                call()
        now = monotonic()
        for task in list(ready):
            # popped first: a task may enqueue itself
            if task in ready:
                del ready[task]
                if task.run(now):
                    busy[task] = None
        if busy:
            task = next(iter(busy))
            del busy[task]
            if task.run(now):
                busy[task] = None
        if self.timers.earliest <= now:
            for task in self.timers.take_due(now):
                later = task.expire(now)
                if later is not None:
                    self.timers.set(task, later)

    def close(self) -> None:
        self.epoll.close()
        with self._wakeup_lock:
            self._closed = True
            os.close(self._wakeup)
