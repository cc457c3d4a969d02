# SPDX-License-Identifier: Apache-2.0
"""Processes besides units: listed, started and signalled on request.

Only children of PID 1 are signalled: it reaps them itself, so their numbers cannot belong to others by then. What is
started here runs in a session of its own with the environment of init.toml, that which was asked for and PATH, has its
output in the logs under `run@N`, and goes with the enclave.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable

from enclavekit_core.errors import EnclavekitError, InputError, describe_cause

from enclavekit_enclave_init.initctl import proc_table
from enclavekit_enclave_init.logs.hub import LogHub
from enclavekit_enclave_init.runtime.event_loop import EventLoop
from enclavekit_enclave_init.supervision.events import Ending
from enclavekit_enclave_init.units.unit import Unit

MAX_STARTED = 64  # at once


class Processes:
    def __init__(self, loop: EventLoop, hub: LogHub) -> None:
        self._loop, self._hub = loop, hub
        self._running: dict[int, str] = {}

    def describe(self, main_pids: dict[int, str], pids: Iterable[int] | None = None) -> list[dict[str, object]]:
        """Return processes by pid, all of them or those of `pids` that are there."""
        uptime_s, now_s, ours = proc_table.read_uptime(), time.time(), os.getpid()
        owners = {**self._running, **main_pids}
        described = []
        for pid in proc_table.list_pids() if pids is None else pids:
            stat = proc_table.read_stat(pid)
            if stat is not None:
                command = proc_table.read_command(pid)
                described.append(proc_table.describe_process(stat, command, owners, uptime_s, now_s, ours))
        return described

    def memory_bytes(self, main_pids: dict[int, str]) -> dict[str, int]:
        """Return the resident memory of each unit's session."""
        found: dict[str, int] = {}
        for pid in proc_table.list_pids():
            stat = proc_table.read_stat(pid)
            name = main_pids.get(stat.session) if stat is not None else None
            if stat is not None and name is not None:
                found[name] = found.get(name, 0) + stat.resident_pages * proc_table.PAGE_KB * 1024
        return found

    def signal(self, pid: int, number: int) -> None:
        """Signal a child of ours. Raises InputError."""
        stat = proc_table.read_stat(pid)
        if stat is None:
            raise InputError("signal", f"process {pid}", "there is no such process")
        if stat.ppid != os.getpid():
            raise InputError("signal", f"process {pid}", "it is not a child of PID 1")
        try:
            os.kill(pid, number)
        except OSError as exc:
            raise InputError("signal", f"process {pid}", describe_cause(exc)) from exc

    def start(
        self, argv: tuple[str, ...], environment: tuple[str, ...], on_started: Callable[[int, str], None]
    ) -> None:
        """Start a program; `on_started(pid, failure)` is called when it runs or cannot. Raises InputError."""
        if len(self._running) >= MAX_STARTED:
            raise InputError("start", argv[0], f"{MAX_STARTED} processes have been started so and still run")
        taken = set(self._running.values())
        # numbers are used again: each is a log of its own
        name = next(name for number in range(1, MAX_STARTED + 1) if (name := f"run@{number}") not in taken)
        settings = tuple((name, value) for name, _, value in (item.partition("=") for item in environment))
        unit = Unit(name=name, argv=argv, environment=settings)
        told = False

        def tell(pid: int, failure: str) -> None:
            nonlocal told
            if not told:
                told = True
                on_started(pid, failure)

        def ended(pid: int, ending: Ending) -> None:
            self._running.pop(pid, None)
            self._hub.say(f"{unit.name} (pid {pid}) {ending}")
            # a program that cannot be run has ended with the reason; one that is short has run all the same
            tell(pid, ending.failure)

        try:
            pid = self._loop.start_other(unit, lambda pid: tell(pid, ""), ended)
        except (OSError, EnclavekitError) as exc:
            raise InputError("start", argv[0], describe_cause(exc)) from exc
        self._running[pid] = unit.name
        self._hub.say(f"{unit.name} starts as pid {pid}: {argv[0]}")
