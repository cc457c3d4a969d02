# SPDX-License-Identifier: Apache-2.0
"""Killing all of a unit: its session, which its processes leave only on purpose.

Whoever calls this still holds the session leader, at least as a zombie, so that its number cannot belong to others.
"""

from __future__ import annotations

import os
import signal

MAX_ROUNDS = 20  # against a unit that forks while it is being killed


def signal_group(leader: int, number: int) -> None:
    """Signal the process group of `leader`; no error if it is empty."""
    try:
        os.killpg(leader, number)
    except ProcessLookupError:
        # just forked, it may not lead a group yet: the signal must not be lost
        signal_process(leader, number)
    except PermissionError:
        # all that is left are processes with another uid, outside a PID 1 with all rights
        pass


def signal_process(pid: int, number: int) -> None:
    """Signal one process that has not been reaped."""
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        pass


def kill_session(leader: int) -> None:
    """SIGKILL every process of the session that `leader` leads."""
    signal_group(leader, signal.SIGKILL)
    for _ in range(MAX_ROUNDS):
        members = [pid for pid in _list_pids() if pid != os.getpid() and _is_live_member(pid, leader)]
        for pid in members:
            try:
                os.kill(pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                pass
        if not members:
            return


def session_of(pid: int) -> int:
    """Return the session that a process is in; 0 if it is gone."""
    try:
        return os.getsid(pid)
    except OSError:
        return 0


def _list_pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _is_live_member(pid: int, session: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", "rb") as source:
            # the name in parentheses may hold anything; behind it: state, ppid, pgrp, session (proc(5))
            fields = source.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return int(fields[3]) == session and fields[0] not in (b"Z", b"X")
