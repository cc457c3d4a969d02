# SPDX-License-Identifier: Apache-2.0
"""Whether what a client sends may go on, asked of each piece after a policy has let its connection through. Pure."""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence


class Passage(enum.Enum):
    REFUSED = "refused"
    """And the connection is over."""
    ALLOWED = "allowed"
    UNWATCHED = "unwatched"
    """And there is no need to ask again."""


CheckBytes = Callable[[bytes], Passage]
"""Takes what was read next of a stream."""
CheckDatagram = Callable[[bytes], Sequence[bytes] | None]
"""Takes the next datagram; returns those that may go on now, it among them or not. None: the session is over."""
