# SPDX-License-Identifier: Apache-2.0
"""Pipes to splice through, lent to flows while bulk data moves and taken back empty."""

from __future__ import annotations

import fcntl
import os
from typing import Protocol

from enclavekit_pf_proxy.limits import LARGE_PIPES, MAX_PIPES

PIPE_BYTES = 256 * 1024  # vsock is fastest with 64..256 KiB at a time
LARGE_PIPE_BYTES = 1024 * 1024  # a third less CPU time per byte than 256 KiB; vsock collapses above 2 MiB
MAX_SPARE = 32  # kept open for the next flow; making one costs three system calls

Pipe = tuple[int, int]
"""(read end, write end)"""


class Holder(Protocol):
    """Who has a pipe."""

    def give_up_pipe(self) -> None:
        """`take_back` follows."""


class PipePool:
    """At most MAX_PIPES pipes, large ones while few are needed. Without a pipe a flow copies: slower, not wrong."""

    def __init__(self, max_pipes: int = MAX_PIPES) -> None:
        self._max_pipes = max_pipes
        self._spare: list[Pipe] = []
        self._lent = 0
        self._resting: dict[Holder, None] = {}  # ordered: who has rested longest goes first

    def lend(self, holder: Holder) -> Pipe | None:
        """Return an empty pipe, be it that of a flow that rests; None if there is none to be had now."""
        if not self._spare and self._lent >= self._max_pipes and self._resting:
            next(iter(self._resting)).give_up_pipe()
        if self._spare:
            self._lent += 1
            return self._spare.pop()
        if self._lent >= self._max_pipes:
            return None
        try:
            pipe = make_pipe(LARGE_PIPE_BYTES if self._lent < LARGE_PIPES else PIPE_BYTES)
        except OSError:
            return None  # no descriptors left
        self._lent += 1
        return pipe

    def rest(self, holder: Holder) -> None:
        """The holder's pipe is empty for now: whoever needs one more may have it."""
        self._resting[holder] = None

    def wake(self, holder: Holder) -> None:
        """The holder's pipe is in use again."""
        self._resting.pop(holder, None)

    def take_back(self, pipe: Pipe, holder: Holder, *, empty: bool) -> None:
        """End a loan; a pipe that still holds bytes is closed."""
        self._resting.pop(holder, None)
        self._lent -= 1
        if empty and len(self._spare) < MAX_SPARE:
            self._spare.append(pipe)
        else:
            close_pipe(pipe)

    def close(self) -> None:
        while self._spare:
            close_pipe(self._spare.pop())


def make_pipe(size_bytes: int) -> Pipe:
    """Return a non-blocking pipe of that size, or of what the kernel allows."""
    read_end, write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        fcntl.fcntl(write_end, fcntl.F_SETPIPE_SZ, size_bytes)
    except OSError:
        pass  # over the user's pipe budget (pipe(7)): slower, not wrong
    return read_end, write_end


def close_pipe(pipe: Pipe) -> None:
    os.close(pipe[0])
    os.close(pipe[1])
