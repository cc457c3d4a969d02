# SPDX-License-Identifier: Apache-2.0
"""The supervisor's view of its workers: asks all of them, adds up, and keeps what those counted that have ended."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from msgspec import structs

from enclavekit_pf_proxy.status.channel import WorkerChannel
from enclavekit_pf_proxy.status.model import Status, merge

if TYPE_CHECKING:
    from enclavekit_pf_proxy.loop import Loop

ANSWER_S = 2.0  # a worker that takes longer is left out: its last answer stands
MAX_PAST = 10_000  # listeners whose workers have ended; each reload may bring others


class Roster:
    """All workers that may have something to say."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._started = time.monotonic()
        self._channels: set[WorkerChannel] = set()
        self._past: list[Status] = []
        self._inquiries: dict[bytes, Inquiry] = {}
        self._count = 0

    def add(self, sock: socket.socket) -> None:
        """A worker has started; `sock` is our end of its channel."""
        self._channels.add(WorkerChannel(self._loop, sock, self._heard))

    def ask(self, with_connections: bool, answer: Callable[[Status], None]) -> None:
        """Have `answer` called with what all workers say together."""
        self._count += 1
        number = b"%d" % self._count
        asked = {one for one in self._channels if one.ask(number, with_connections=with_connections)}
        if not asked:
            answer(self._add_up({}))
            return
        self._inquiries[number] = Inquiry(self, number, asked, answer)
        self._loop.timers.set(self._inquiries[number], time.monotonic() + ANSWER_S)

    def give_up(self) -> None:
        """In a forked child: close its copies."""
        for channel in self._channels:
            channel.give_up()

    def close(self) -> None:
        for channel in self._channels:
            channel.close()
        self._channels.clear()

    def _heard(self, channel: WorkerChannel, number: bytes) -> None:
        if not number:
            self._channels.discard(channel)
            if channel.last is not None:
                past = merge(0, 0.0, [*self._past, channel.last], [])
                self._past = [structs.replace(past, listeners=past.listeners[-MAX_PAST:], connections=[])]
            for inquiry in list(self._inquiries.values()):
                inquiry.lost(channel)
        elif number in self._inquiries and channel.last is not None:
            self._inquiries[number].heard(channel, channel.last)

    def finish(self, inquiry: Inquiry) -> None:
        if self._inquiries.pop(inquiry.number, None) is not None:
            self._loop.drop(inquiry)
            inquiry.answer(self._add_up(inquiry.parts))

    def _add_up(self, parts: dict[WorkerChannel, Status]) -> Status:
        known = []
        for channel in self._channels:  # whoever has ended since it answered is in `past` already
            if channel in parts:
                known.append(parts[channel])
            elif channel.last is not None:
                known.append(structs.replace(channel.last, connections=[], omitted=0))
        return merge(os.getpid(), time.monotonic() - self._started, known, self._past)


class Inquiry:
    """One question to all. A task of the loop, for its deadline."""

    def __init__(
        self, roster: Roster, number: bytes, waiting: set[WorkerChannel], answer: Callable[[Status], None]
    ) -> None:
        self.number, self.answer = number, answer
        self.parts: dict[WorkerChannel, Status] = {}
        self._roster, self._waiting = roster, waiting

    def heard(self, channel: WorkerChannel, status: Status) -> None:
        self.parts[channel] = status
        self.lost(channel)

    def lost(self, channel: WorkerChannel) -> None:
        self._waiting.discard(channel)
        if not self._waiting:
            self._roster.finish(self)

    def notice(self, index: int, mask: int) -> None:
        pass  # it has no descriptor

    def run(self, now: float) -> bool:
        return False

    def expire(self, now: float) -> float | None:
        self._roster.finish(self)
        return None
