# SPDX-License-Identifier: Apache-2.0
"""Readiness, liveness and metrics of every unit. Pure.

Source for the text form: Prometheus, exposition formats, version 0.0.4.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from enclavekit_enclave_init.supervision.state import State, UnitStatus

UP = (State.RUNNING.value, State.DONE.value)


@dataclass(frozen=True, slots=True)
class Sample:
    """What is there to measure."""

    units: Sequence[UnitStatus]
    uptime_s: float
    boot_s: float
    """From PID 1's first instruction to the start of the first unit."""
    resident_bytes: int
    """Of PID 1."""
    log_lines: Mapping[str, int]
    lost_lines: Mapping[str, int]
    memory_bytes: Mapping[str, int]
    """By unit: its cgroup's, or the resident memory of its session."""


def describe_health(units: Iterable[UnitStatus]) -> dict[str, object]:
    """Return who is ready and who lives, and whether all of those that should are and do."""
    described = {unit.name: {"ready": is_ready(unit), "live": is_live(unit), "state": unit.state} for unit in units}
    wanted = [unit for unit in units if unit.enabled]
    return {
        "ready": all(is_ready(unit) for unit in wanted),
        "live": all(is_live(unit) for unit in wanted),
        "units": described,
    }


def is_ready(unit: UnitStatus) -> bool:
    """It is up: runs and has said so if it is to, or was a oneshot and has ended well."""
    return unit.state in UP


def is_live(unit: UnitStatus) -> bool:
    """It has not failed, and its last health check, if there is one, was good."""
    return unit.state != State.FAILED.value and not unit.health_failures


def render_metrics(sample: Sample) -> str:
    """Return the metrics."""
    units = sample.units
    families: list[tuple[str, str, str, list[tuple[str, float]]]] = [
        ("uptime_seconds", "gauge", "Since PID 1 began.", [("", sample.uptime_s)]),
        ("boot_seconds", "gauge", "From there to the first unit.", [("", sample.boot_s)]),
        ("resident_memory_bytes", "gauge", "Of PID 1.", [("", sample.resident_bytes)]),
        ("unit_ready", "gauge", "It is up.", [(_label(unit=u.name), is_ready(u)) for u in units]),
        ("unit_live", "gauge", "It has not failed.", [(_label(unit=u.name), is_live(u)) for u in units]),
        ("unit_state", "gauge", "1 for the state.", [(_label(unit=u.name, state=u.state), 1) for u in units]),
        ("unit_restarts_total", "counter", "By Restart.", [(_label(unit=u.name), u.restarts) for u in units]),
        (
            "unit_last_exit_status",
            "gauge",
            "Of its main process, 128+n for signal n.",
            [(_label(unit=u.name), status) for u in units if (status := last_status(u)) is not None],
        ),
        ("unit_memory_bytes", "gauge", "In use.", _by_unit(sample.memory_bytes)),
        ("log_lines_total", "counter", "Taken.", _by_unit(sample.log_lines)),
        ("log_lost_lines_total", "counter", "That no file could take.", _by_unit(sample.lost_lines)),
    ]
    lines = []
    for name, kind, text, values in families:
        if values:
            lines += [f"# HELP enclave_init_{name} {text}", f"# TYPE enclave_init_{name} {kind}"]
            lines += [
                f"enclave_init_{name}{labels} {float(value):g}"
                if isinstance(value, bool | int) and value < 10**6
                else f"enclave_init_{name}{labels} {value!r}"
                for labels, value in values
            ]
    return "\n".join(lines) + "\n"


def last_status(unit: UnitStatus) -> int | None:
    """Return how its main process ended the last time, as a shell has it."""
    return unit.exit_status if unit.signal is None else 128 + unit.signal


def _by_unit(values: Mapping[str, int]) -> list[tuple[str, float]]:
    return [(_label(unit=name), value) for name, value in sorted(values.items())]


def _label(**labels: str) -> str:
    # unit names and states hold nothing that would have to be escaped
    return "{" + ",".join(f'{name}="{value}"' for name, value in labels.items()) + "}"
