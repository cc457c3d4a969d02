# SPDX-License-Identifier: Apache-2.0
"""How long the boot took, by step and by unit: what `initctl analyze` shows. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from enclavekit_enclave_init.supervision.state import STARTUP, State

_STARTS = {state.value for state in STARTUP}
_UP = {State.RUNNING.value, State.DONE.value}


@dataclass(slots=True)
class UnitTimes:
    """Of the first start of a unit, in seconds from PID 1's beginning."""

    began_s: float
    up_s: float | None = None


@dataclass(slots=True)
class BootTimes:
    """Filled in as the boot goes on; times of a monotonic clock."""

    began: float
    """PID 1's first instruction."""
    steps: list[tuple[str, float]] = field(default_factory=list)
    """What was done before the first unit, and the seconds that it took."""
    units: dict[str, UnitTimes] = field(default_factory=dict)
    boot_s: float = 0.0
    """All before the first unit."""
    own_s: float = 0.0
    """Processor time of PID 1 itself until the last unit came up for the first time."""

    def add_step(self, what: str, seconds: float) -> None:
        self.steps.append((what, seconds))

    def finish_boot(self, now: float) -> None:
        self.boot_s = now - self.began

    def note_state(self, unit: str, state: str, now: float, own_s: float) -> None:
        """Take a change of state, with PID 1's processor time so far; only the first start of a unit counts."""
        if state in _STARTS:
            self.units.setdefault(unit, UnitTimes(now - self.began))
        elif state in _UP:
            times = self.units.setdefault(unit, UnitTimes(now - self.began))
            if times.up_s is None:
                times.up_s = now - self.began
                self.own_s = own_s

    def describe(self) -> dict[str, object]:
        """Return it in milliseconds."""
        ups = [times.up_s for times in self.units.values() if times.up_s is not None]
        return {
            "boot_ms": _ms(self.boot_s),
            "up_ms": _ms(max(ups)) if ups and len(ups) == len(self.units) else None,
            "own_ms": _ms(self.own_s),
            "steps": [{"what": what, "ms": _ms(seconds)} for what, seconds in self.steps],
            "units": [
                {
                    "name": name,
                    "began_ms": _ms(times.began_s),
                    "up_ms": None if times.up_s is None else _ms(times.up_s),
                    "took_ms": None if times.up_s is None else _ms(times.up_s - times.began_s),
                }
                for name, times in sorted(self.units.items(), key=lambda item: item[1].began_s)
            ],
        }


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 1)
