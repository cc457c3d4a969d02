# SPDX-License-Identifier: Apache-2.0
"""How much a proxy takes on, and how long it waits."""

from __future__ import annotations

from dataclasses import dataclass

FDS_PER_CONNECTION = 6  # two sockets, two pipes
RESERVED_FDS = 64  # listener, epoll, logs, resolver, and some for connections that are just being made
DEFAULT_MAX_CONNECTIONS = 1024  # 512 MiB of pipes if every one is full both ways


@dataclass(frozen=True, slots=True)
class Limits:
    max_connections: int = DEFAULT_MAX_CONNECTIONS
    """Connections at a time; further ones wait in the kernel's backlog. Less if the descriptors do not suffice."""
    connect_timeout_s: float = 10.0
    """How long the upstream may take to accept."""
    idle_timeout_s: float = 300.0
    """Close a relay after this long with no bytes either way; long enough for a long poll. 0: never."""
    drain_timeout_s: float = 10.0
    """How long relays may go on after SIGTERM."""
    linger_s: float = 5.0
    """How long to drop what a client still sends after its upstream has gone, so that it gets the answer."""


def connections_for(wanted: int, descriptor_limit: int) -> int:
    """Return how many connections fit: at most `wanted`, at least 1."""
    return max(1, min(wanted, (descriptor_limit - RESERVED_FDS) // FDS_PER_CONNECTION))


def descriptors_for(connections: int) -> int:
    """Return how many descriptors that many connections need."""
    return RESERVED_FDS + connections * FDS_PER_CONNECTION
