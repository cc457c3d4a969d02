# SPDX-License-Identifier: Apache-2.0
"""What /proc says of processes: parsed here, read by `read_processes`.

Source: proc(5). Times are in clock ticks; `start_time` counts from the boot of the kernel, which an emulated enclave
shares with its host.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

STATES = {
    "R": "running", "S": "sleeping", "D": "disk sleep", "Z": "zombie", "T": "stopped", "t": "traced", "I": "idle",
    "X": "dead",
}  # fmt: skip
MAX_COMMAND_CHARS = 4096
TICKS = os.sysconf("SC_CLK_TCK")
PAGE_KB = os.sysconf("SC_PAGE_SIZE") // 1024


@dataclass(frozen=True, slots=True)
class ProcessStat:
    """One /proc/PID/stat."""

    pid: int
    name: str
    state: str
    """A letter."""
    ppid: int
    session: int
    cpu_ticks: int
    """User and system."""
    start_ticks: int
    resident_pages: int


def parse_stat(text: str) -> ProcessStat:
    """Parse /proc/PID/stat; the name in parentheses may hold anything, parentheses and newlines too.

    Raises: ValueError.
    """
    head, _, rest = text.rpartition(")")
    pid, _, name = head.partition(" (")
    fields = rest.split()
    if len(fields) < 22:
        raise ValueError("it is cut off")
    return ProcessStat(
        pid=int(pid),
        name=name,
        state=fields[0],
        ppid=int(fields[1]),
        session=int(fields[3]),
        cpu_ticks=int(fields[11]) + int(fields[12]),
        start_ticks=int(fields[19]),
        resident_pages=int(fields[21]),
    )


def describe_process(
    stat: ProcessStat, command: str, units: dict[int, str], uptime_s: float, now_s: float, ours: int
) -> dict[str, object]:
    """Return a process as the Rust initctl knows it, and a little more.

    Args:
        units: pid of the main process -> unit; the others of a unit are in its session.
        uptime_s: of the kernel. now_s: Unix time. ours: the pid of PID 1.
    """
    age_s = max(uptime_s - stat.start_ticks / TICKS, 1 / TICKS)
    unit = units.get(stat.pid) or units.get(stat.session)
    return {
        "pid": stat.pid,
        "ppid": stat.ppid,
        "name": stat.name,
        "cmdline": command or f"[{stat.name}]",
        "state": STATES.get(stat.state, stat.state),
        "cpu_percent": round(100 * stat.cpu_ticks / TICKS / age_s, 1),
        "memory_kb": stat.resident_pages * PAGE_KB,
        "start_time": int(now_s - age_s),
        "managed": unit is not None,
        "service_name": unit,
        "cpu_seconds": stat.cpu_ticks / TICKS,
        "child": stat.ppid == ours,
    }


def read_stat(pid: int) -> ProcessStat | None:
    """Return a process; None if it is gone."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as source:
            return parse_stat(source.read())
    except (OSError, ValueError):
        return None


def read_command(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as source:
            data = source.read(MAX_COMMAND_CHARS)
    except OSError:
        return ""
    return data.rstrip(b"\0").replace(b"\0", b" ").decode(errors="replace")


def read_uptime() -> float:
    """Return the seconds since the kernel's boot."""
    with open("/proc/uptime", encoding="ascii") as source:
        return float(source.read().split()[0])


def list_pids() -> list[int]:
    return sorted(int(name) for name in os.listdir("/proc") if name.isdigit())
