# SPDX-License-Identifier: Apache-2.0
"""What the supervisor is told (events), what it decides (actions), and the values in them. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Ending:
    """How a process ended: by a status or by a signal."""

    exit_status: int | None = None
    signal: int | None = None
    failure: str = ""
    """Why it could not even be started; `exit_status` then is 126 or 127 as shells have it."""

    @property
    def succeeded(self) -> bool:
        return self.exit_status == 0 and not self.failure

    def __str__(self) -> str:
        if self.failure:
            return f"failed: {self.failure}"
        return f"killed by signal {self.signal}" if self.signal is not None else f"exited with {self.exit_status}"


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
class TimerFired:
    """The one timer of `unit` has run out."""

    unit: str


Event = Started | Exited | TimerFired


@dataclass(frozen=True, slots=True)
class Spawn:
    unit: str


@dataclass(frozen=True, slots=True)
class Signal:
    """Send `number` to the process group of `unit`."""

    unit: str
    number: int


@dataclass(frozen=True, slots=True)
class KillSession:
    """Send SIGKILL to every process of the session of `unit`."""

    unit: str


@dataclass(frozen=True, slots=True)
class SetTimer:
    """Start the one timer of `unit`, in place of any other."""

    unit: str
    delay_s: float


@dataclass(frozen=True, slots=True)
class CancelTimer:
    unit: str


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


Action = Spawn | Signal | KillSession | SetTimer | CancelTimer | Note | PowerOff
