# SPDX-License-Identifier: Apache-2.0
"""The metrics of a proxy. Pure."""

from __future__ import annotations

from collections.abc import Callable

from enclavekit_core.exposition import Metric, render

from enclavekit_pf_proxy.status.model import ListenerStatus, Status

PREFIX = "pf_proxy_"
BY_LISTENER: tuple[tuple[str, str, str, Callable[[ListenerStatus], int]], ...] = (
    ("connections", "gauge", "Live connections.", lambda one: one.live),
    (
        "connections_limit",
        "gauge",
        "How many may be, on all ports of a range.",
        lambda one: one.max_connections,
    ),
    ("accepted_total", "counter", "Connections that were accepted.", lambda one: one.accepted),
    ("refused_total", "counter", "Connections that were not allowed or had no upstream.", lambda one: one.refused),
    ("bytes_up_total", "counter", "Bytes to upstreams.", lambda one: one.bytes_up),
    ("bytes_down_total", "counter", "Bytes to clients.", lambda one: one.bytes_down),
    ("dropped_total", "counter", "Datagrams that were lost here.", lambda one: one.dropped),
)


def render_metrics(status: Status) -> str:
    """Return the page."""
    metrics = [
        Metric(f"{PREFIX}uptime_seconds", "gauge", "Since the start.", [({}, status.uptime_s)]),
        Metric(f"{PREFIX}workers", "gauge", "Processes that accept.", [({}, status.workers)]),
        Metric(f"{PREFIX}draining_workers", "gauge", "Processes that only finish.", [({}, status.draining)]),
    ]
    for name, kind, text, value in BY_LISTENER:
        metrics.append(
            Metric(PREFIX + name, kind, text, [({"listen": one.listen, "service": one.service}, value(one))
                                               for one in status.listeners])
        )  # fmt: skip
    decisions = [({"verdict": one.verdict, "reason": one.reason}, one.count) for one in status.decisions]
    metrics.append(Metric(f"{PREFIX}decisions_total", "counter", "Decisions of the policy.", decisions))
    return render(metrics)
