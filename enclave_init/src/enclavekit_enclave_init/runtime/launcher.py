# SPDX-License-Identifier: Apache-2.0
"""Prepares what a unit needs and starts its processes: protections settled, paths bound, groups made, socket opened."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from enclavekit_enclave_init.logs.journal import Journal
from enclavekit_enclave_init.runtime.cgroups import Cgroups
from enclavekit_enclave_init.runtime.mounts import bind_unit_paths
from enclavekit_enclave_init.runtime.notifications import NotifySocket
from enclavekit_enclave_init.runtime.reactor import READ, Reactor
from enclavekit_enclave_init.runtime.spawn import Child, spawn
from enclavekit_enclave_init.units.protections import Abilities, settle_protections
from enclavekit_enclave_init.units.unit import Unit


class Launcher:
    """Starts processes of units; who owns them then is `Children`."""

    def __init__(
        self,
        reactor: Reactor,
        cgroups: Cgroups,
        journal: Journal,
        base_environment: Sequence[tuple[str, str]],
        abilities: Abilities,
        *,
        may_mount: bool,
        on_notification: Callable[[str, NotifySocket], None],
    ) -> None:
        """`on_notification(unit, socket)` is called when there is something to be received."""
        self._reactor, self._cgroups, self._journal = reactor, cgroups, journal
        self._base_environment, self._abilities = base_environment, abilities
        self._may_mount, self._on_notification = may_mount, on_notification
        self._notify_sockets: dict[str, NotifySocket] = {}
        self._stdin = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)

    def start(self, unit: Unit, *, is_main: bool) -> Child:
        """Start the unit's program, confined as its file says. Raises OSError, EnclavekitError."""
        unit, lacks, refusal = settle_protections(unit, self._abilities)
        if refusal:
            raise OSError(refusal)
        if lacks and is_main:
            self._journal(f"{unit.name} runs without {', '.join(lacks)}")
        if self._may_mount:
            bind_unit_paths(unit)
        elif unit.bind_paths:
            raise OSError("BindPaths needs PID 1")
        notify_path = self._open_notify_socket(unit) if unit.notify or unit.watchdog_s else ""
        groups = self._cgroups.prepare(unit)
        try:
            return spawn(unit, self._base_environment, self._stdin, groups, notify_path)
        finally:
            for fd in groups:
                os.close(fd)

    def start_bare(self, unit: Unit) -> Child:
        """Start a program that belongs to no unit. Raises OSError, EnclavekitError."""
        return spawn(unit, self._base_environment, self._stdin)

    def close_sockets(self) -> None:
        """Listen to nobody any more."""
        for source in self._notify_sockets.values():
            self._reactor.unwatch(source.fileno())
            source.close()

    def close(self) -> None:
        os.close(self._stdin)

    def _open_notify_socket(self, unit: Unit) -> str:
        name = unit.name
        if name not in self._notify_sockets:
            made = self._notify_sockets[name] = NotifySocket(name, unit.root_directory)
            self._reactor.watch(made.fileno(), READ, lambda: self._on_notification(name, made))
        return self._notify_sockets[name].path
