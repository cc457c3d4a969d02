# SPDX-License-Identifier: Apache-2.0
"""Collects what one worker has to say."""

from __future__ import annotations

import os
import time
from collections import Counter
from itertools import islice
from typing import TYPE_CHECKING

from enclavekit_pf_proxy.status.model import ConnectionStatus, DecisionCount, ListenerStatus, Status

if TYPE_CHECKING:
    from enclavekit_pf_proxy.connection import Connection
    from enclavekit_pf_proxy.frontend import Frontend
    from enclavekit_pf_proxy.server import Server

MAX_LISTED = 1000  # connections of one worker: collecting them takes milliseconds, in which no byte moves


def describe(server: Server, *, with_connections: bool) -> Status:
    now = time.monotonic()
    status = Status(os.getpid(), now - server.started, workers=int(server.accepts), draining=int(not server.accepts))
    live: Counter[Frontend] = Counter()
    carried: dict[Frontend, list[int]] = {frontend: [0, 0, 0] for frontend in server.frontends}
    for connection in server.connections():
        live[connection.frontend] += 1
        up, down = connection.carried
        sums = carried[connection.frontend]
        sums[0] += up
        sums[1] += down
        sums[2] += connection.dropped
    status.listeners = [_describe_listener(one, live[one], *carried[one]) for one in server.frontends]
    status.decisions = [
        DecisionCount(verdict, reason, count)
        for gate in {id(one.service.gate): one.service.gate for one in server.frontends}.values()
        if gate is not None
        for (verdict, reason), count in gate.decisions.items()
    ]
    if with_connections:
        listed = islice(server.connections(), MAX_LISTED)
        status.connections = [_describe_connection(connection, now) for connection in listed]
        status.omitted = max(0, live.total() - MAX_LISTED)
    return status


def _describe_listener(frontend: Frontend, live: int, bytes_up: int, bytes_down: int, dropped: int) -> ListenerStatus:
    service, totals = frontend.service, frontend.totals
    return ListenerStatus(
        listen=frontend.listen,
        upstream="as asked" if service.upstream is None else str(service.upstream),
        mode=service.mode.value,
        service=service.name,
        max_connections=service.limits.max_connections,
        live=live,
        accepted=totals.accepted,
        refused=totals.refused,
        dropped=totals.dropped + dropped,
        bytes_up=totals.bytes_up + bytes_up,
        bytes_down=totals.bytes_down + bytes_down,
    )


def _describe_connection(connection: Connection, now: float) -> ConnectionStatus:
    up, down = connection.carried
    relay = connection.relay
    return ConnectionStatus(
        conn=f"{connection.number:016x}",
        listen=connection.frontend.listen,
        peer=connection.peer.text,
        upstream="" if connection.target is None else str(connection.target),
        phase=connection.phase.value,
        age_s=round(now - connection.since, 3),
        idle_s=round(now - (connection.since if relay is None else relay.last_activity), 3),
        bytes_up=up,
        bytes_down=down,
    )
