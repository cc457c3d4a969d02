# SPDX-License-Identifier: Apache-2.0
"""Answers as people read them. Pure; what a unit or the kernel has said is made printable here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from enclavekit_core.exit_report import printable

Unit = Mapping[str, Any]
NEEDS = ("requires", "binds_to", "wants")


def table(head: Sequence[str], rows: Iterable[Sequence[object]], widest_last: int = 0) -> list[str]:
    """Return aligned columns; the last one as long as it is, or cut to `widest_last` characters."""
    text = [list(head), *([printable("-" if cell is None else str(cell)) for cell in row] for row in rows)]
    if widest_last:
        for row in text:
            row[-1] = row[-1][:widest_last]
    widths = [max(len(row[column]) for row in text) for column in range(len(head))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in text]


def yes(value: object) -> str:
    return "yes" if value else "no"


def duration(seconds: float) -> str:
    """Return seconds in the two largest units."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, hours, days = int(seconds // 60), int(seconds // 3600), int(seconds // 86400)
    if minutes < 60:
        return f"{minutes} min {int(seconds % 60)} s"
    return f"{hours} h {minutes % 60} min" if hours < 24 else f"{days} d {hours % 24} h"


def size(count: float | None) -> str:
    if count is None:
        return "-"
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def service_list(units: Iterable[Unit]) -> list[str]:
    rows = [
        (u["name"], yes(u["enabled"]), yes(u["active"]), u["restart_policy"], u["restart_count"], u["state"])
        for u in units
    ]
    return table(("NAME", "ENABLED", "ACTIVE", "RESTART", "RESTARTS", "STATE"), rows)


def last_exit(unit: Unit) -> str:
    if unit["failure"]:
        return str(unit["failure"])
    if unit["signal"] is not None:
        return f"signal {unit['signal']}"
    return "-" if unit["exit_status"] is None else f"exit {unit['exit_status']}"


def service_tree(units: Sequence[Unit]) -> list[str]:
    """Return every unit below the units that need it, with state, age, process and last exit."""
    known = {unit["name"]: unit for unit in units}
    needs = {name: [n for key in NEEDS for n in _needed(unit, key) if n in known] for name, unit in known.items()}
    for name, unit in known.items():
        for other in unit["dependencies"]["required_by"]:
            if other in known and name not in needs[other]:
                needs[other].append(name)
    needed = {name for names in needs.values() for name in names}
    roots = [name for name in known if name not in needed]
    shown: set[str] = set()
    rows: list[Sequence[object]] = []

    def add(name: str, depth: int) -> None:
        unit = known[name]
        label = "  " * max(depth - 1, 0) + ("`- " if depth else "") + name
        if name in shown:
            rows.append((label, "(above)", "", "", "", "", ""))
            return
        shown.add(name)
        why = unit["status_text"] or (unit["reason"] if unit["state"] not in ("running", "done") else "") or ""
        rows.append(
            (
                label,
                unit["state"],
                duration(unit["since_s"]),
                unit["pid"],
                size(unit.get("memory_bytes")),
                last_exit(unit),
                why,
            )
        )
        for other in needs[name]:
            add(other, depth + 1)

    # a cycle of wants has no root: its members are roots too then
    for name in (*roots, *known):
        if name not in shown:
            add(name, 0)
    return table(("UNIT", "STATE", "FOR", "PID", "MEMORY", "LAST EXIT", "WHY"), rows)


def _needed(unit: Unit, key: str) -> list[str]:
    return list(unit["dependencies"]["requires"] if key == "requires" else unit[key])


def service_status(unit: Unit) -> list[str]:
    lines = [
        ("name", unit["name"]),
        ("state", f"{unit['state']} for {duration(unit['since_s'])}"),
        ("enabled", yes(unit["enabled"])),
        ("pid", unit["pid"]),
        ("ready", yes(unit["ready"])),
        ("live", yes(unit["live"])),
        ("last exit", last_exit(unit)),
        ("why", unit["reason"]),
        ("says", unit["status_text"]),
        ("restarts", f"{unit['restart_count']} (Restart={unit['restart_policy']}, {unit['restart_sec']:g} s)"),
        ("program", unit["exec_start"]),
        ("directory", unit["working_directory"]),
        *((key.replace("_", " "), ", ".join(names)) for key, names in unit["dependencies"].items()),
        ("wants", ", ".join(unit["wants"])),
        ("binds to", ", ".join(unit["binds_to"])),
        ("conflicts", ", ".join(unit["conflicts"])),
        ("note", "its file has changed: restart it" if unit["needs_restart"] else ""),
    ]
    return [f"{name + ':':<12} {printable(str(value))}" for name, value in lines if value not in (None, "")]


def process_list(processes: Iterable[Mapping[str, Any]], cpu: Mapping[int, float] | None = None) -> list[str]:
    rows = [
        (
            p["pid"], p["ppid"], p["state"], p["cpu_percent"] if cpu is None else f"{cpu.get(p['pid'], 0.0):.1f}",
            size(p["memory_kb"] * 1024), yes(p["managed"]), p["service_name"], p["cmdline"],
        )
        for p in processes
    ]  # fmt: skip
    return table(("PID", "PPID", "STATE", "CPU%", "MEM", "MANAGED", "SERVICE", "COMMAND"), rows, widest_last=50)


def pairs(values: Mapping[str, Any]) -> list[str]:
    return [f"{name.replace('_', ' ') + ':':<18} {printable(str(value))}" for name, value in values.items()]


def analysis(times: Mapping[str, Any]) -> list[str]:
    up = "not all units are up yet" if times["up_ms"] is None else f"all units up after {times['up_ms']:.1f} ms"
    own = f"PID 1 itself has used {times['own_ms']:.1f} ms of processor time for that"
    lines = [f"PID 1 took {times['boot_ms']:.1f} ms to the first unit; {up}", own, ""]
    steps = sorted(times["steps"], key=lambda step: -step["ms"])
    lines += table(("MS", "STEP"), [(f"{step['ms']:.1f}", step["what"]) for step in steps])
    rows = [
        (f"{u['began_ms']:.1f}", *(("-", "-") if u["up_ms"] is None else (f"{u['up_ms']:.1f}", f"{u['took_ms']:.1f}")),
         u["name"])
        for u in times["units"]
    ]  # fmt: skip
    return [*lines, "", *table(("BEGAN", "UP", "TOOK", "UNIT"), rows)]


def health(found: Mapping[str, Any]) -> list[str]:
    rows = [(name, yes(unit["ready"]), yes(unit["live"]), unit["state"]) for name, unit in found["units"].items()]
    return [
        f"ready: {yes(found['ready'])}, live: {yes(found['live'])}",
        *table(("UNIT", "READY", "LIVE", "STATE"), rows),
    ]


def log_line(line: Mapping[str, str]) -> str:
    mark = "!" if line["stream"] == "stderr" else ":"
    text = "".join(char if char.isprintable() or char == "\t" else "?" for char in line["text"])
    return f"{line['time']} {printable(line['unit'])}{mark} {text}"
