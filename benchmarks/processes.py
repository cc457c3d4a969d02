# SPDX-License-Identifier: Apache-2.0
"""What processes and all below them cost, as /proc says: proc(5)."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence


def cpu_times_s(pids: Sequence[int]) -> dict[int, float]:
    """Return the processor time of each that lives, of which the scheduler counts each nanosecond."""
    found: dict[int, float] = {}
    for pid in _trees(pids):
        for task in _list(f"/proc/{pid}/task"):
            spent_ns = int((_read(f"/proc/{pid}/task/{task}/schedstat") or "0").split()[0])
            found[pid] = found.get(pid, 0.0) + spent_ns / 1e9
    return found


def cpu_since_s(before: dict[int, float], pids: Sequence[int]) -> float:
    """Return what those that live have spent since; children that have ended meanwhile do not count."""
    return sum(spent_s - before.get(pid, 0.0) for pid, spent_s in cpu_times_s(pids).items())


def resident_bytes(pids: Sequence[int]) -> int:
    return sum(int((_read(f"/proc/{pid}/statm") or "0 0").split()[1]) for pid in _trees(pids)) * os.sysconf(
        "SC_PAGE_SIZE"
    )


def _trees(pids: Sequence[int]) -> Iterator[int]:
    for pid in pids:
        yield pid
        for task in _list(f"/proc/{pid}/task"):
            yield from _trees([int(child) for child in _read(f"/proc/{pid}/task/{task}/children").split()])


def _list(path: str) -> list[str]:
    try:
        return os.listdir(path)
    except OSError:
        return []  # it has ended meanwhile


def _read(path: str) -> str:
    try:
        with open(path, encoding="ascii") as source:
            return source.read()
    except OSError:
        return ""
