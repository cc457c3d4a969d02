# SPDX-License-Identifier: Apache-2.0
"""Which numbers the streams of one side of a connection have. Pure.

A number is free again once both sides have sent CLOSE for it; until then frames that carry it may be under way.
"""

from __future__ import annotations

from enclavekit_core.errors import LocalProtocolError

MAX_STREAMS = 128  # open at once, of each side's; as many as the commands that an enclave runs


class StreamNumbers:
    """Hands out the numbers of a range in turn, so that one that has just become free is the last to be used again."""

    def __init__(self, numbers: range, most: int = MAX_STREAMS) -> None:
        self._numbers, self._most = numbers, most
        self._used: set[int] = set()
        self._next = 0

    @property
    def is_full(self) -> bool:
        return len(self._used) >= self._most

    def take(self) -> int:
        """Return a number that is in no use. Raises LocalProtocolError if `is_full`."""
        if self.is_full:
            raise LocalProtocolError(f"cannot open a stream: {self._most} are open")
        while (number := self._numbers[self._next]) in self._used:
            self._next = (self._next + 1) % len(self._numbers)
        self._next = (self._next + 1) % len(self._numbers)
        self._used.add(number)
        return number

    def release(self, number: int) -> None:
        self._used.discard(number)
