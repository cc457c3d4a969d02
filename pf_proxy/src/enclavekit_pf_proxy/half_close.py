# SPDX-License-Identifier: Apache-2.0
"""When a relay passes on an end, drops bytes or closes: the half-close rules, as a table. Pure.

A relay has two flows, one each way. An end of one says nothing about the other: a client that has sent its request and
shut its side down still gets the whole answer, and an error in one flow never takes bytes from the other.

    OPEN        bytes move from source to sink
    DRAINING    the source has ended; what is in the pipe still goes to the sink, then the sink is shut down
    DISCARDING  the sink takes nothing any more; the source is read and dropped. Not reading it would leave bytes in its
                receive queue, and closing a TCP socket with unread bytes resets it, which destroys what we sent to it
    ENDED       nothing left to do

A failed source is a dead connection both ways: its own flow drains, and the flow towards it has lost its sink.
"""

from __future__ import annotations

import enum

from enclavekit_core.errors import LocalProtocolError


class State(enum.Enum):
    __hash__ = object.__hash__  # the table is asked for each end of each connection; Enum's own is a call of Python

    OPEN = "open"
    DRAINING = "draining"
    DISCARDING = "discarding"
    ENDED = "ended"


class Event(enum.Enum):
    __hash__ = object.__hash__

    SOURCE_ENDED = "source ended"
    SOURCE_FAILED = "source failed"
    SINK_FAILED = "sink failed"
    EMPTIED = "pipe emptied"  # after the source has ended


class Action(enum.Enum):
    SHUT_DOWN_SINK = "shut down sink"
    """No more bytes for the sink of this flow: shutdown(SHUT_WR)."""
    LINGER = "linger"
    """Only a discarding flow is left: close soon, whether its source ends or not."""
    CLOSE = "close"
    """Both flows have ended: close both sockets."""


TRANSITIONS: dict[tuple[State, Event], State] = {
    (State.OPEN, Event.SOURCE_ENDED): State.DRAINING,
    (State.OPEN, Event.SOURCE_FAILED): State.DRAINING,
    (State.OPEN, Event.SINK_FAILED): State.DISCARDING,
    (State.DRAINING, Event.EMPTIED): State.ENDED,
    (State.DRAINING, Event.SINK_FAILED): State.ENDED,
    (State.DISCARDING, Event.SOURCE_ENDED): State.ENDED,
    (State.DISCARDING, Event.SOURCE_FAILED): State.ENDED,
    (State.DISCARDING, Event.SINK_FAILED): State.DISCARDING,
    (State.ENDED, Event.SINK_FAILED): State.ENDED,
}


OVER = (State.ENDED, State.DISCARDING)  # nothing goes to the sink any more


class HalfClose:
    """The states of both flows of one relay. Flow 0 goes from side 0 to side 1, flow 1 back."""

    __slots__ = ("_announced", "states")

    def __init__(self) -> None:
        self.states = [State.OPEN, State.OPEN]
        self._announced: tuple[Action, ...] = ()

    def receive(self, flow: int, event: Event) -> list[tuple[int, Action]]:
        """Take one event of one flow and return what to do, in order, as (flow, action).

        Raises:
            LocalProtocolError for an event that cannot happen in the flow's state.
        """
        actions = self._step(flow, event)
        if event is Event.SOURCE_FAILED:
            actions += self._step(1 - flow, Event.SINK_FAILED)
        end = self._end()
        if end is not None and end not in self._announced:
            self._announced += (end,)
            actions.append((flow, end))
        return actions

    def _end(self) -> Action | None:
        one, other = self.states
        if one not in OVER or other not in OVER:
            return None
        return Action.CLOSE if one is other is State.ENDED else Action.LINGER

    def _step(self, flow: int, event: Event) -> list[tuple[int, Action]]:
        before = self.states[flow]
        after = TRANSITIONS.get((before, event))
        if after is None:
            raise LocalProtocolError(f"cannot relay: {event.value!r} in state {before.value!r}")
        self.states[flow] = after
        if (before, event) == (State.DRAINING, Event.EMPTIED):
            return [(flow, Action.SHUT_DOWN_SINK)]
        return []
