# SPDX-License-Identifier: Apache-2.0
"""How much a proxy takes on, and how long it waits."""

from __future__ import annotations

from dataclasses import dataclass

FDS_PER_CONNECTION = 2  # two sockets; pipes are borrowed while bulk data moves
LARGE_PIPES = 32  # of 1 MiB, and the others of 256 KiB:
MAX_PIPES = 160  # 64 MiB, what an unprivileged user may have in pipes (pipe-user-pages-soft, pipe(7))
RESERVED_FDS = 64 + 2 * MAX_PIPES  # listener, epoll, logs, resolver, connections that are just being made
DEFAULT_MAX_CONNECTIONS = 1024


@dataclass(frozen=True, slots=True)
class Limits:
    max_connections: int = DEFAULT_MAX_CONNECTIONS
    """Connections at a time; further ones wait in the kernel's backlog. Less if the descriptors do not suffice."""
    max_per_cid: int = 512
    """Connections at a time of one vsock peer; further ones are refused, or one enclave would keep others out. 0: no
    limit but `max_connections`."""
    max_per_source: int = 256
    """UDP sessions at a time of one source address. 0: no limit but `max_connections`."""
    max_datagram_bytes: int = 65507
    """Longer datagrams are dropped; the default is what IPv4 carries."""
    max_queued_bytes: int = 256 * 1024
    """Of datagrams that a UDP session has waiting, as the kernel counts them: no more than net.core.rmem_max."""
    connect_timeout_s: float = 10.0
    """How long the upstream may take to accept."""
    header_timeout_s: float = 10.0
    """How long a peer may take for the header that is expected of it."""
    inspect_timeout_s: float = 5.0
    """How long an app may take for the first bytes that a policy wants to see."""
    idle_timeout_s: float = 300.0
    """Close a relay after this long with no bytes either way; long enough for a long poll. 0: never."""
    udp_idle_timeout_s: float = 120.0
    """The same for a UDP session, which has no other end. RFC 4787 (REQ-5) asks address translators for two minutes."""
    half_close_timeout_s: float = 120.0
    """The same once one direction has ended: somebody waits for an answer, or nobody is left. 0: never."""
    drain_timeout_s: float = 10.0
    """How long relays may go on after SIGTERM."""
    linger_s: float = 5.0
    """How long to drop what a client still sends after its upstream has gone, so that it gets the answer."""
    keepalive_s: int = 60
    """TCP keep-alive after this long without a byte: finds peers that vanished without a word."""


def connections_for(wanted: int, descriptor_limit: int) -> int:
    """Return how many connections fit: at most `wanted`, at least 1."""
    return max(1, min(wanted, (descriptor_limit - RESERVED_FDS) // FDS_PER_CONNECTION))


def descriptors_for(connections: int) -> int:
    """Return how many descriptors that many connections need."""
    return RESERVED_FDS + connections * FDS_PER_CONNECTION
