# SPDX-License-Identifier: Apache-2.0
"""Processes that outlive the one that started them, named by pid and start time: a pid alone is used again."""

from __future__ import annotations

import os
import select
import signal
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ProcessId:
    pid: int
    start_ticks: int
    """Clock ticks from boot to the start of the process; /proc/PID/stat field 22."""


def identify(pid: int) -> ProcessId | None:
    """Return the identity of a process that has not ended (a zombie has); None if there is none."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as source:
            # the command name may hold spaces and brackets: fields count from the last one
            fields = source.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    if fields[0] in (b"Z", b"X"):
        return None
    return ProcessId(pid, int(fields[19]))


def is_alive(process: ProcessId) -> bool:
    """Say whether exactly this process still runs."""
    return identify(process.pid) == process


def kill_and_wait(process: ProcessId, timeout_s: float) -> bool:
    """SIGKILL a process that need not be our child; say whether it has ended within the time."""
    return signal_and_wait(process, signal.SIGKILL, timeout_s)


def signal_and_wait(process: ProcessId, number: int, timeout_s: float) -> bool:
    """Send a signal to a process that need not be our child; say whether it has ended within the time."""
    try:
        handle = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return True
    try:
        # the handle names what runs now: only after this check is it certain that it is the one meant
        if not is_alive(process):
            return True
        signal.pidfd_send_signal(handle, number)
        return wait_for_end(handle, timeout_s)
    except ProcessLookupError:
        return True
    finally:
        os.close(handle)


def wait_for_process(process: ProcessId, timeout_s: float | None = None) -> bool:
    """Wait until a process that need not be our child has ended, by default however long; say whether it has."""
    try:
        handle = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return True
    try:
        return not is_alive(process) or wait_for_end(handle, timeout_s)
    finally:
        os.close(handle)


def wait_for_end(pidfd: int, timeout_s: float | None) -> bool:
    """Wait until the process behind `pidfd` has ended; say whether it has."""
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    return bool(poller.poll(None if timeout_s is None else timeout_s * 1000))


def catches_signal(pid: int, number: int) -> bool:
    """Say whether a process has a handler for a signal: PID 1 of a namespace ignores those that it has none for."""
    try:
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as source:
            for line in source:
                if line.startswith("SigCgt:"):
                    return bool(int(line.split()[1], 16) >> (number - 1) & 1)
    except (FileNotFoundError, ProcessLookupError):
        pass
    return False


def boot_id() -> str:
    """Return the id of this boot of the machine: pids and start times of another boot mean nothing."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as source:
        return source.read().strip()
