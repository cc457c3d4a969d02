# SPDX-License-Identifier: Apache-2.0
"""Lets a few requests begin in each turn of the event loop; the others wait outside, in order.

A thousand requests that arrive at once would all begin in one turn, which then takes a fifth of a second, and so do
the turns that follow: whatever arrives meanwhile, `/health` above all, would wait as long. What waits here costs
nothing until its turn.
"""

from __future__ import annotations

import asyncio
import collections

A_TURN = 8  # requests: a millisecond or two of work


class Turnstile:
    """For one event loop. How many wait is the caller's to bound."""

    def __init__(self, a_turn: int = A_TURN) -> None:
        self._a_turn = self._left = a_turn
        self._waiting: collections.deque[asyncio.Future[None]] = collections.deque()
        self._is_turning = False

    async def enter(self) -> None:
        """Return at once while this turn has room, else in a later one."""
        loop = asyncio.get_running_loop()
        if not self._is_turning:
            self._is_turning = True
            loop.call_soon(self._turn, loop)
        if self._left and not self._waiting:
            self._left -= 1
            return
        place = loop.create_future()
        self._waiting.append(place)
        await place

    def _turn(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin the next turn: those who wait go first."""
        self._left = self._a_turn
        while self._left and self._waiting:
            place = self._waiting.popleft()
            if not place.done():  # else its client has gone
                place.set_result(None)
                self._left -= 1
        self._is_turning = bool(self._waiting) or self._left < self._a_turn
        if self._is_turning:
            loop.call_soon(self._turn, loop)
