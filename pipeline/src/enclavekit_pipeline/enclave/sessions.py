# SPDX-License-Identifier: Apache-2.0
"""Signals to processes that may end at any time: each is held by a descriptor while it is looked at and signalled, so
that its number cannot meanwhile have become somebody else's.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
from collections.abc import Callable

MAX_ROUNDS = 16  # a process forks faster than it is found; not often, since each round ends all that were found


def signal_process(pid: int, number: int, wanted: Callable[[int], bool]) -> bool:
    """Signal a process if it is `wanted`; return whether it was. Raises ProcessLookupError, PermissionError."""
    try:
        descriptor = os.pidfd_open(pid)
    except OSError as exc:
        if exc.errno != errno.ENOSYS:  # kernels before 5.3
            raise
        if wanted(pid):
            os.kill(pid, number)
            return True
        return False
    try:
        if not wanted(pid):
            return False
        signal.pidfd_send_signal(descriptor, number)
        return True
    finally:
        os.close(descriptor)


def signal_session(leader: int, number: int) -> None:
    """Signal every process of a session whose leader has not been reaped, whatever process groups it has made.

    With SIGKILL nobody is left who could fork; with any other signal each process of now gets it once.
    """
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, number)
    signalled = {leader}  # which leads its own group, always: setpgid(2) does not let it leave
    for _ in range(MAX_ROUNDS):
        found = _members(leader) - signalled
        if not found:
            return
        for pid in found:
            # those of the leader's own group have it already; KILL twice is no more than once
            if number == signal.SIGKILL or _group_of(pid) != leader:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    signal_process(pid, number, lambda pid: _session_of(pid) == leader)
        signalled |= found
        if number != signal.SIGKILL:
            return


def _members(leader: int) -> set[int]:
    """Return the processes of a session. One loop with few calls: a machine may have thousands of processes."""
    found: set[int] = set()
    getsid = os.getsid
    with contextlib.suppress(OSError):
        for name in os.listdir("/proc"):
            if name[0] <= "9":  # numbers are all that begins with a digit
                try:
                    if getsid(int(name)) == leader:
                        found.add(int(name))
                except ProcessLookupError:  # ended meanwhile
                    continue
    return found


def _session_of(pid: int) -> int:
    try:
        return os.getsid(pid)
    except OSError:
        return 0


def _group_of(pid: int) -> int:
    try:
        return os.getpgid(pid)
    except OSError:
        return 0
