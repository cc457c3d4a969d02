# SPDX-License-Identifier: Apache-2.0
"""What there is to say, and how the parts of several workers become one. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Struct, structs


class ListenerStatus(Struct):
    """One listening address; sums over all workers."""

    listen: str
    upstream: str
    mode: str
    service: str
    """Its name in the configuration; may be empty."""
    max_connections: int
    """Of its whole range of ports."""
    live: int
    """Connections now."""
    accepted: int
    refused: int
    """Not allowed, or no upstream."""
    bytes_up: int
    """To the upstream."""
    bytes_down: int
    """To clients."""
    dropped: int = 0
    """Datagrams that were lost here."""


class DecisionCount(Struct):
    """How often the policy decided so."""

    verdict: str
    reason: str
    count: int


class ConnectionStatus(Struct):
    """One live connection."""

    conn: str
    """Its id, as in the logs of both ends."""
    listen: str
    peer: str
    upstream: str
    """Empty while it is not known."""
    phase: str
    age_s: float
    idle_s: float
    """Since bytes moved last."""
    bytes_up: int
    bytes_down: int


class Status(Struct):
    """Of one worker, or of all."""

    pid: int
    uptime_s: float
    workers: int = 1
    """Those that accept connections."""
    draining: int = 0
    """Those of before a reload, which only finish."""
    listeners: list[ListenerStatus] = []
    decisions: list[DecisionCount] = []
    connections: list[ConnectionStatus] = []
    """If they were asked for."""
    omitted: int = 0
    """Connections that were too many to list."""


def merge(pid: int, uptime_s: float, parts: Iterable[Status], past: Iterable[Status]) -> Status:
    """Return the sums over the workers that are (`parts`) and those that were (`past`): what was counted stays so."""
    whole = Status(pid, uptime_s, workers=0)
    listeners: dict[tuple[str, str], ListenerStatus] = {}
    decisions: dict[tuple[str, str], DecisionCount] = {}
    for part in parts:
        whole.workers += part.workers
        whole.draining += part.draining
        whole.connections += part.connections
        whole.omitted += part.omitted
        for listener in part.listeners:
            key = (listener.service, listener.listen)
            if key not in listeners:
                listeners[key] = structs.replace(
                    listener, live=0, max_connections=0, accepted=0, refused=0, bytes_up=0, bytes_down=0, dropped=0
                )
            found = listeners[key]
            found.live += listener.live
            if not part.draining:  # what drains takes no more, whatever its limit was
                found.max_connections += listener.max_connections
            _count(found, listener)
        _count_decisions(decisions, part)
    for part in past:
        for listener in part.listeners:
            there = listeners.get((listener.service, listener.listen))
            if there is not None:  # else nobody listens there any more
                _count(there, listener)
        _count_decisions(decisions, part)
    whole.listeners = list(listeners.values())
    whole.decisions = sorted(decisions.values(), key=lambda one: (one.verdict, one.reason))
    return whole


def _count(into: ListenerStatus, part: ListenerStatus) -> None:
    into.accepted += part.accepted
    into.refused += part.refused
    into.bytes_up += part.bytes_up
    into.bytes_down += part.bytes_down
    into.dropped += part.dropped


def _count_decisions(into: dict[tuple[str, str], DecisionCount], part: Status) -> None:
    for one in part.decisions:
        found = into.setdefault((one.verdict, one.reason), DecisionCount(one.verdict, one.reason, 0))
        found.count += one.count
