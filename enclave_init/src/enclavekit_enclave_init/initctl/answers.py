# SPDX-License-Identifier: Apache-2.0
"""What PID 1 answers: units and lines as the Rust initctl's JSON has them, and what is new. Pure."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence

from enclavekit_enclave_init.initctl.metrics import is_live, is_ready, last_status
from enclavekit_enclave_init.logs.records import Line, format_time
from enclavekit_enclave_init.supervision.state import UnitStatus

UPSTREAM_DEPENDENCIES = ("before", "after", "requires", "required_by")


def unit_in_list(unit: UnitStatus) -> dict[str, object]:
    """Return an entry of ServiceList."""
    return {
        "name": unit.name,
        "enabled": unit.enabled,
        "active": unit.active,
        "restart_policy": unit.unit.restart,
        "restart_count": unit.restarts,
        "state": unit.state,
    }


def unit_status(unit: UnitStatus) -> dict[str, object]:
    """Return the `status` of ServiceStatus; a superset of the Rust one's."""
    own = unit.unit
    return {
        **unit_in_list(unit),
        "pid": unit.pid,
        "restart_sec": own.restart_delay_s,
        "exit_status": last_status(unit),
        "exec_start": " ".join(own.argv),
        "working_directory": own.working_directory,
        "dependencies": {name: list(unit.dependencies.get(name, ())) for name in UPSTREAM_DEPENDENCIES},
        "wants": list(unit.dependencies.get("wants", ())),
        "binds_to": list(unit.dependencies.get("binds_to", ())),
        "conflicts": list(unit.dependencies.get("conflicts", ())),
        "since_s": round(unit.since_s, 3),
        "signal": unit.signal,
        "failure": unit.failure or None,
        "reason": unit.reason or None,
        "status_text": unit.status or None,
        "ready": is_ready(unit),
        "live": is_live(unit),
        "health_failures": unit.health_failures,
        "needs_restart": unit.needs_restart,
        "removed": unit.removed,
    }


def system_status(
    units: Sequence[UnitStatus], uptime_s: float, processes: int, log_dir: str, service_dir: str
) -> dict[str, object]:
    return {
        "uptime_secs": int(uptime_s),
        "total_services": len(units),
        "active_services": sum(unit.active for unit in units),
        "enabled_services": sum(unit.enabled for unit in units),
        "total_processes": processes,
        "log_dir": log_dir,
        "service_dir": service_dir,
    }


def log_texts(lines: Iterable[Line]) -> list[str]:
    """Return lines as the Rust initctl shows them: with their time, without unit and stream."""
    return [
        time.strftime("[%Y-%m-%d %H:%M:%S] ", time.gmtime(line.time_s)) + line.text.decode(errors="replace")
        for line in lines
    ]


def log_entries(lines: Iterable[Line]) -> list[Mapping[str, str]]:
    return [
        {
            "time": format_time(line.time_s),
            "unit": line.unit,
            "stream": line.stream,
            "text": line.text.decode(errors="replace"),
        }
        for line in lines
    ]
