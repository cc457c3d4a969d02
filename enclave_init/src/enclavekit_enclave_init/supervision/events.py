# SPDX-License-Identifier: Apache-2.0
"""What the supervisor is told (events), what it decides (actions), and the values in them. Pure."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field


class Timer(enum.Enum):
    """The timers of a unit; it has at most one of each."""

    STATE = "state"  # what the state waits for: the end of a start, a stop or a pause
    WATCHDOG = "watchdog"
    HEALTH = "health"  # the next check, or the longest that the running one may take


class Slot(enum.Enum):
    """The processes of a unit besides its main one; it has at most one of each."""

    COMMAND = "command"  # ExecStartPre, ExecStartPost, ExecStop, ExecReload
    HEALTH = "health"  # HealthCheck


@dataclass(frozen=True, slots=True)
class Ending:
    """How a process ended: by a status or by a signal."""

    exit_status: int | None = None
    signal: int | None = None
    failure: str = ""
    """Why it could not even be started (`exit_status` then is 126 or 127 as shells have it), or what it is
    blamed for."""
    out_of_memory: bool = False
    """The kernel has killed it because its memory, or all memory, was used up."""

    @property
    def succeeded(self) -> bool:
        return self.exit_status == 0 and not self.failure

    def __str__(self) -> str:
        if self.failure:
            return f"failed: {self.failure}"
        why = ", out of memory" if self.out_of_memory else ""
        return f"killed by signal {self.signal}{why}" if self.signal is not None else f"exited with {self.exit_status}"


@dataclass(frozen=True, slots=True)
class Started:
    """The program of `unit` has been executed."""

    unit: str


@dataclass(frozen=True, slots=True)
class Exited:
    """The main process of `unit` has ended, or could not be started."""

    unit: str
    ending: Ending


@dataclass(frozen=True, slots=True)
class CommandExited:
    """A process started by SpawnCommand has ended, or could not be started; not told about a dropped one."""

    unit: str
    slot: Slot
    ending: Ending


@dataclass(frozen=True, slots=True)
class Notified:
    """A process of `unit` has sent variables to NOTIFY_SOCKET. Source: sd_notify(3)."""

    unit: str
    variables: Mapping[str, str] = field(hash=False)


@dataclass(frozen=True, slots=True)
class TimerFired:
    """A timer of `unit` has run out."""

    unit: str
    timer: Timer = Timer.STATE


Event = Started | Exited | CommandExited | Notified | TimerFired


@dataclass(frozen=True, slots=True)
class Spawn:
    unit: str


@dataclass(frozen=True, slots=True)
class SpawnCommand:
    """Run `argv` beside the main process, confined as it is."""

    unit: str
    slot: Slot
    argv: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DropCommand:
    """SIGKILL what runs in `slot`, if anything does, and forget it: its end is not told."""

    unit: str
    slot: Slot


@dataclass(frozen=True, slots=True)
class Signal:
    """Send `number` to what runs of `unit`: the process group of the main process, else that of the command."""

    unit: str
    number: int
    main_only: bool = False


@dataclass(frozen=True, slots=True)
class KillSession:
    """Send SIGKILL to every process of `unit`: its sessions and its cgroup."""

    unit: str


@dataclass(frozen=True, slots=True)
class SetTimer:
    """Start one of the timers of `unit`, in place of an earlier one of that kind."""

    unit: str
    delay_s: float
    timer: Timer = Timer.STATE


@dataclass(frozen=True, slots=True)
class CancelTimer:
    unit: str
    timer: Timer = Timer.STATE


@dataclass(frozen=True, slots=True)
class Changed:
    """`unit` has entered another state; for whoever watches."""

    unit: str
    state: str


@dataclass(frozen=True, slots=True)
class Note:
    """Something worth a line in the log."""

    text: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """Why the enclave ends."""

    reason: str
    unit: str | None = None
    """The unit whose end this is; None if it ends for another reason and no unit has OnExit."""
    exit_status: int | None = None
    signal: int | None = None
    out_of_memory: bool = False
    kind: str = "poweroff"
    """What is asked of the machine: poweroff or reboot."""

    @property
    def process_status(self) -> int:
        """The exit code that says the same: the status, or 128+n; 1 for a unit that never ran, 0 if there is none."""
        if self.signal is not None:
            return 128 + self.signal
        if self.exit_status is not None:
            return self.exit_status
        return 0 if self.unit is None else 1


@dataclass(frozen=True, slots=True)
class PowerOff:
    """Everything has ended; the last action."""

    outcome: Outcome


Action = Spawn | SpawnCommand | DropCommand | Signal | KillSession | SetTimer | CancelTimer | Changed | Note | PowerOff
