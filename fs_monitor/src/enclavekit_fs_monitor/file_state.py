# SPDX-License-Identifier: Apache-2.0
"""The life of one watched file as a table: (state, what happened) -> (state, what to do). Pure.

A hash that is found counts only for the content it was begun for; `tracker` drops older results before they get here,
so that a result always meets HASHING.
"""

from __future__ import annotations

import enum

from enclavekit_core.errors import LocalProtocolError


class State(enum.Enum):
    CREATED = "created"
    """It is there, and whoever made it may still be writing."""
    MODIFIED = "modified"
    """Written to since its last hash."""
    HASHING = "hashing"
    """Complete as far as we know; its hash is queued or being computed."""
    CLOSED = "closed"
    """Its hash is known and published."""
    FAILED = "failed"
    """It cannot be read; tried again later."""
    DELETED = "deleted"
    """Not there, or no regular file any more."""


class Happening(enum.Enum):
    CREATE = "create"
    """A name appeared: a writer may hold it, or it is a second link and complete."""
    WRITE = "write"
    """Written to or truncated."""
    CLOSE = "close"
    """Closed after writing, moved in, or its attributes changed: probably complete, after a moment of quiet."""
    SETTLE = "settle"
    """Found by a scan, or quiet for long enough."""
    VANISH = "vanish"
    """Deleted, moved away, or replaced by what is no regular file."""
    HASHED = "hashed"
    UNSTABLE = "unstable"
    """It changed while it was read, or is open for writing."""
    UNREADABLE = "unreadable"


class Deed(enum.Enum):
    NOTHING = "nothing"
    WAIT = "wait"
    """Look again after a while."""
    HASH = "hash"
    PUBLISH = "publish"
    WITHDRAW = "withdraw"
    """Delete its hash from the bus: a hash that is no longer true is worse than none."""
    WITHDRAW_AND_WAIT = "withdraw and wait"
    """Both: what is on the bus is of an earlier content, and the new one has no hash yet."""


_EVENTS: dict[Happening, tuple[State, Deed]] = {  # what the file system does is possible in every state
    Happening.CREATE: (State.CREATED, Deed.WAIT),
    Happening.WRITE: (State.MODIFIED, Deed.WAIT),
    Happening.CLOSE: (State.MODIFIED, Deed.WAIT),
    Happening.SETTLE: (State.HASHING, Deed.HASH),
    Happening.VANISH: (State.DELETED, Deed.WITHDRAW),
}
TRANSITIONS: dict[tuple[State, Happening], tuple[State, Deed]] = {
    **{(state, happening): outcome for state in State for happening, outcome in _EVENTS.items()},
    (State.HASHING, Happening.HASHED): (State.CLOSED, Deed.PUBLISH),
    (State.HASHING, Happening.UNSTABLE): (State.MODIFIED, Deed.WITHDRAW_AND_WAIT),
    (State.HASHING, Happening.UNREADABLE): (State.FAILED, Deed.WITHDRAW_AND_WAIT),
    (State.DELETED, Happening.VANISH): (State.DELETED, Deed.NOTHING),
}


def next_state(state: State, happening: Happening) -> tuple[State, Deed]:
    """Return the new state and what to do. Raises LocalProtocolError for a pair that cannot happen."""
    try:
        return TRANSITIONS[state, happening]
    except KeyError:
        raise LocalProtocolError(f"cannot apply {happening.value!r} to a file that is {state.value}") from None
