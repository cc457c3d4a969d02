# SPDX-License-Identifier: Apache-2.0
"""A status as lines for people. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from enclavekit_pf_proxy.status.model import Status

LISTENERS = ("LISTEN", "UPSTREAM", "LIVE", "ACCEPTED", "REFUSED", "UP", "DOWN")
CONNECTIONS = ("CONN", "PEER", "UPSTREAM", "PHASE", "AGE", "IDLE", "UP", "DOWN")
UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def format_status(status: Status, before: Status | None = None, elapsed_s: float = 0.0) -> list[str]:
    """Return the lines. `before`: what it was `elapsed_s` ago, for rates."""
    draining = f", {status.draining} draining" if status.draining else ""
    workers = "1 worker" if status.workers == 1 else f"{status.workers} workers"
    rate = _rate(status, before, elapsed_s)
    lines = [f"pf-proxy {status.pid}: up {format_seconds(status.uptime_s)}, {workers}{draining}{rate}"]
    rows = [
        (
            f"{one.listen} ({one.service})" if one.service else one.listen,
            one.upstream,
            f"{one.live}/{one.max_connections}",
            str(one.accepted),
            str(one.refused),
            format_bytes(one.bytes_up),
            format_bytes(one.bytes_down),
        )
        for one in status.listeners
    ]
    lines += format_table(LISTENERS, rows)
    if status.decisions:
        counts = (f"{one.count} {one.verdict} ({one.reason.replace('_', ' ')})" for one in status.decisions)
        lines.append("decisions: " + ", ".join(counts))
    if status.connections:
        details = [
            (
                one.conn,
                one.peer,
                one.upstream or "-",
                one.phase,
                format_seconds(one.age_s),
                format_seconds(one.idle_s),
                format_bytes(one.bytes_up),
                format_bytes(one.bytes_down),
            )
            for one in sorted(status.connections, key=lambda one: -one.age_s)
        ]
        lines += format_table(CONNECTIONS, details)
    if status.omitted:
        lines.append(f"and {status.omitted} connections more")
    return lines


def format_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in (head, *rows)
    ]


def format_bytes(count: float) -> str:
    for unit in UNITS:
        if count < 1024 or unit == UNITS[-1]:
            break
        count /= 1024
    return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"


def format_seconds(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, _ = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if not hours:
        return f"{minutes} min {int(seconds) % 60} s"
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def _rate(status: Status, before: Status | None, elapsed_s: float) -> str:
    if before is None or before.pid != status.pid or elapsed_s <= 0:
        return ""
    sums = [
        (sum(one.accepted for one in each.listeners), sum(one.bytes_up + one.bytes_down for one in each.listeners))
        for each in (before, status)
    ]
    accepted, carried = (max(0, now - then) / elapsed_s for then, now in zip(*sums, strict=True))
    return f"; {accepted:.1f} connections/s, {format_bytes(carried)}/s"
