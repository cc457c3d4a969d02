# SPDX-License-Identifier: Apache-2.0
"""Whether the other side still answers: when to send a PING, and when to give up. Pure; time is an argument.

Any state of the connection gets the same question, so a peer that sends but never reads is found out as well: what it
was asked lies in a buffer that nobody empties, and no PONG comes.
"""

from __future__ import annotations

import enum
import struct

INTERVAL_S = 15.0  # idle connections pass through nothing that forgets them sooner
PATIENCE_S = 60.0  # long enough for megabytes that lie before the PONG on a slow line
TOKEN = struct.Struct(">Q")
MAX_PING_BYTES = 32


class Verdict(enum.Enum):
    WAIT = enum.auto()
    SEND_PING = enum.auto()
    DEAD = enum.auto()


class Liveness:
    """One side's view of the other. `check` is called at `next_check`, or at any other time."""

    def __init__(self, now: float, interval_s: float = INTERVAL_S, patience_s: float = PATIENCE_S) -> None:
        self._interval_s, self._patience_s = interval_s, patience_s
        self._count = 0
        self._asked_at: float | None = None
        self._answered_at = self._checked_at = now

    @property
    def token(self) -> bytes:
        """The payload of the PING that is to be sent, or is under way."""
        return TOKEN.pack(self._count)

    @property
    def next_check(self) -> float:
        """The time at which `check` has something to say, or looks whether we slept."""
        if self._asked_at is None:
            return self._answered_at + self._interval_s
        return min(self._asked_at + self._patience_s, self._checked_at + self._interval_s)

    def check(self, now: float) -> Verdict:
        """Say what to do now; SEND_PING counts as done."""
        slept = now - self._checked_at > 2 * self._interval_s
        self._checked_at = now
        if self._asked_at is None:
            if now < self._answered_at + self._interval_s:
                return Verdict.WAIT
            self._count += 1
            self._asked_at = now
            return Verdict.SEND_PING
        if slept:
            self._asked_at = (
                now  # it was us who stood still (a stopped process, a paused machine): the PONG may be here
            )
            return Verdict.WAIT
        return Verdict.DEAD if now >= self._asked_at + self._patience_s else Verdict.WAIT

    def pong(self, payload: bytes, now: float) -> bool:
        """Take a PONG; return whether it answers our PING."""
        if self._asked_at is None or payload != self.token:
            return False
        self._asked_at, self._answered_at = None, now
        return True
