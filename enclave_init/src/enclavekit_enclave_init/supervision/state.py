# SPDX-License-Identifier: Apache-2.0
"""What the supervisor knows of a unit, and what it shows of that. Pure."""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from enclavekit_enclave_init.supervision.events import Ending, Timer
from enclavekit_enclave_init.units.unit import Unit


class State(enum.Enum):
    WAITING = "waiting"  # for the units before it
    PREPARING = "preparing"  # ExecStartPre runs
    STARTING = "starting"  # the main process runs, but is not up yet
    COMPLETING = "completing"  # ExecStartPost runs
    RUNNING = "running"
    BACKOFF = "restarting"  # ended, waits for RestartSec
    ENDING = "ending"  # ExecStop runs
    STOPPING = "stopping"  # StopSignal sent
    KILLING = "killing"  # SIGKILL sent
    DONE = "done"  # ended well, for good
    FAILED = "failed"  # ended badly or never started, for good
    STOPPED = "stopped"  # by us, or never started


STARTUP = frozenset({State.PREPARING, State.STARTING, State.COMPLETING})
HALTING = frozenset({State.ENDING, State.STOPPING, State.KILLING})
ACTIVE = STARTUP | HALTING | {State.RUNNING}  # has a process
COMING = STARTUP | {State.WAITING}  # its start is not decided yet


class Why(enum.Enum):
    """Why a unit is to stop, which decides what becomes of it then."""

    END = "the enclave ends"  # -> STOPPED
    REQUEST = "somebody asked for it"  # -> STOPPED
    AGAIN = "to be started again"  # -> WAITING
    LOST = "what it requires has failed"  # -> FAILED
    FAULT = "it does not do its work"  # -> as if it had ended badly: Restart decides


@dataclass(frozen=True, slots=True)
class Stop:
    why: Why
    reason: str


@dataclass(slots=True)
class Record:
    """A unit while the enclave lives."""

    unit: Unit
    state: State = State.WAITING
    since_s: float = 0.0
    """When it came into this state, in the supervisor's time."""
    starts: deque[float] = field(default_factory=deque)
    """When it was started, no older than its StartLimitIntervalSec; bounded by its StartLimitBurst."""
    waited_s: float = 0.0
    """Back-off beyond RestartSec, which does not count for the start limit."""
    streak: int = 0
    """Restarts in a row without having been up for StartLimitIntervalSec."""
    restarts: int = 0
    """Automatic restarts in this enclave's life."""
    ending: Ending | None = None
    """Of the main process, the last time."""
    reason: str = ""
    """Why it is in a state that it has not come into by itself."""
    stop: Stop | None = None
    """Why it is to stop; None if it is not."""
    has_main: bool = False
    left_behind: bool = False
    """It has a process that does not die of SIGKILL: it cannot be started."""
    queue: list[int] = field(default_factory=list)
    """Which commands of the current kind are still to run, by their index; the first is running."""
    health_failures: int = 0
    checking: bool = False
    """A health check runs."""
    armed: set[Timer] = field(default_factory=set)
    """Timers that run."""
    status: str = ""
    """The last STATUS= that it has sent."""
    changed: bool = False
    """Its file has changed since its main process was started."""
    removed: bool = False
    """Its file has gone: it goes when it has ended."""


@dataclass(frozen=True, slots=True)
class UnitStatus:
    """A unit as plain data, for whoever asks."""

    name: str
    state: str
    """A value of State."""
    enabled: bool
    active: bool
    """It has a process."""
    since_s: float
    """Seconds in this state."""
    restarts: int
    reason: str
    exit_status: int | None
    signal: int | None
    """Of the last end of its main process; both None if it has not ended yet."""
    failure: str
    """Why it could not be started, the last time."""
    status: str
    """The last STATUS= of a notify unit."""
    health_failures: int
    needs_restart: bool
    """Its file has changed since it was started."""
    removed: bool
    unit: Unit
    dependencies: Mapping[str, tuple[str, ...]]
    """Keys of the unit file, lower case: before, after, requires, required_by, wants, binds_to, conflicts."""
    pid: int | None = None
    """The main process; filled in by the event loop, as what follows."""
    cgroup: str | None = None
    """Its directory, the memory controller's where there are several."""


def describe(record: Record, now: float) -> UnitStatus:
    """Return the plain data; `now` in the supervisor's time."""
    unit, ending = record.unit, record.ending or Ending()
    return UnitStatus(
        name=unit.name,
        state=record.state.value,
        enabled=unit.enabled,
        active=record.state in ACTIVE,
        since_s=max(0.0, now - record.since_s),
        restarts=record.restarts,
        reason=record.reason,
        exit_status=ending.exit_status,
        signal=ending.signal,
        failure=ending.failure,
        status=record.status,
        health_failures=record.health_failures,
        needs_restart=record.changed,
        removed=record.removed,
        unit=unit,
        dependencies={
            "before": unit.before,
            "after": unit.after,
            "requires": unit.requires,
            "required_by": unit.required_by,
            "wants": unit.wants,
            "binds_to": unit.binds_to,
            "conflicts": unit.conflicts,
        },
    )
