# SPDX-License-Identifier: Apache-2.0
"""What a control interface asks of a running enclave: the operations, carried out, and the unit files behind them.

    start stop restart reload kill      as `operations` describes them; they return when the request is under way
    snapshot()                          every unit as plain data (`UnitStatus`), pid included
    reload_units()                      reads the unit files again; returns `UnitChanges`
    enable(name), disable(name)         change the file for good (`NAME.service` <-> `NAME.service.disabled`)
    shutdown("poweroff" | "reboot")
    observe(callback)                   callback(unit, state) after each change; returns how to end that

All of it is called in the loop's thread, from a callback of `EventLoop.reactor` (`watch`, `call_later`). Refusals are
InputError and ConfigError and have changed nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from enclavekit_core.errors import ConfigError

from enclavekit_enclave_init.runtime.event_loop import EventLoop
from enclavekit_enclave_init.supervision.events import Action
from enclavekit_enclave_init.supervision.operations import Operations, UnitChanges
from enclavekit_enclave_init.supervision.state import UnitStatus
from enclavekit_enclave_init.units.files import read_units, write_enabled


class Control:
    """The operations on one loop."""

    def __init__(self, loop: EventLoop, service_dir: str) -> None:
        self._loop, self._service_dir = loop, service_dir
        self._operations = Operations(loop.supervisor)

    def start(self, name: str) -> None:
        self._loop.perform(self._operations.start(name, time.monotonic()))

    def stop(self, name: str) -> None:
        self._loop.perform(self._operations.stop(name, time.monotonic()))

    def restart(self, name: str) -> None:
        self._loop.perform(self._operations.restart(name, time.monotonic()))

    def reload(self, name: str) -> None:
        self._loop.perform(self._operations.reload(name, time.monotonic()))

    def kill(self, name: str, number: int, *, main_only: bool = False) -> None:
        self._loop.perform(self._operations.kill(name, number, time.monotonic(), main_only=main_only))

    def shutdown(self, kind: str) -> None:
        self._loop.perform(self._operations.shutdown(kind, time.monotonic()))

    def enable(self, name: str) -> None:
        """Have it start at the next boot; it is not started now. Raises InputError, ConfigError."""
        self._operations.check_enable(name)
        write_enabled(self._service_dir, name, enabled=True)
        self._loop.perform(self._operations.enable(name, time.monotonic()))

    def disable(self, name: str) -> None:
        """Stop it, and have it not start at the next boot. Raises InputError, ConfigError."""
        self._operations.check_disable(name)
        write_enabled(self._service_dir, name, enabled=False)
        self._loop.perform(self._operations.disable(name, time.monotonic()))

    def reload_units(self) -> UnitChanges:
        """Take the unit files as they are now. Raises ConfigError, naming file and line; nothing changes then."""
        units = read_units(self._service_dir)
        actions, changes = self._operations.replace_units(units, time.monotonic())
        self._loop.perform(actions)
        return changes

    def snapshot(self) -> list[UnitStatus]:
        return self._loop.snapshot()

    def find(self, name: str) -> UnitStatus:
        """Return one unit. Raises ConfigError if there is none of that name."""
        for status in self._loop.snapshot():
            if status.name == name:
                return status
        raise ConfigError(f"unit {name}", "", "there is no such unit")

    def observe(self, callback: Callable[[str, str], None]) -> Callable[[], None]:
        """Have `callback(unit, state)` called after each change; the returned function ends that."""
        self._loop.observers.append(callback)
        return lambda: self._loop.observers.remove(callback)

    def perform(self, actions: list[Action]) -> None:
        self._loop.perform(actions)
