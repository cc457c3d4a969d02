# SPDX-License-Identifier: Apache-2.0
"""Waiting for the end of a child without reaping it: its number, which is its session's, stays ours till then."""

from __future__ import annotations

import asyncio
import contextlib
import os

from enclavekit_pipeline.enclave.workplace import Workplace


async def wait_unreaped(pid: int, place: Workplace) -> None:
    """Return once the child has ended, or has been reaped by somebody else."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    except OSError:  # kernels before 5.3, or no descriptor is left: a thread can wait, too
        await place.in_thread(_wait, pid)
        return
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_reader(descriptor, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


def has_ended(pid: int) -> bool:
    """Say whether a child has ended, or has been reaped."""
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None
    except ChildProcessError:
        return True


def _wait(pid: int) -> None:
    with contextlib.suppress(ChildProcessError):
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
