# SPDX-License-Identifier: Apache-2.0
"""A control group per unit, which holds all its processes, whatever they do, and bounds what they use."""

from __future__ import annotations

import os
from collections.abc import Mapping

from enclavekit_core.cgroups import Group, Hierarchy, Limits, find_hierarchies, remove

from enclavekit_enclave_init.units.unit import Unit

PREFIX = "unit-"


class Cgroups:
    """All groups of this enclave."""

    def __init__(self, hierarchies: Mapping[str, Hierarchy], *, removable: bool = False) -> None:
        self._removable = removable
        self._hierarchies = dict(hierarchies)
        self.controllers = frozenset(hierarchies) - {""}
        """Those that limits can be set with."""

    @classmethod
    def find(cls, parent: str = "") -> Cgroups:
        """Look at what is mounted; with version 2, hand its controllers down. None of it being there is no error.

        Args: parent: a directory for all of this enclave's groups, where the hierarchy is shared with others.
        """
        return cls(find_hierarchies(parent), removable=bool(parent))

    @property
    def outlive_us(self) -> bool:
        """They are in a hierarchy that does not end with this enclave: what is not removed stays on the host."""
        return self._removable and bool(self._hierarchies)

    def close(self) -> None:
        """Remove the groups of all units, and the one above them, where they are empty."""
        for directory in {hierarchy.directory for hierarchy in self._hierarchies.values()} if self._removable else ():
            try:
                for name in os.listdir(directory):
                    if name.startswith(PREFIX):
                        self.remove(name.removeprefix(PREFIX))
            except OSError:
                continue
            remove(directory)

    def prepare(self, unit: Unit) -> list[int]:
        """Make the group of `unit` with its limits; return descriptors to which the child writes `0` to join.

        Raises: InputError for a limit that cannot be set.
        """
        limits = Limits(unit.memory_max, unit.tasks_max, unit.cpu_quota)
        return self._group(unit.name).make(limits, unit.name)

    def directory_of(self, name: str) -> str | None:
        """Return the unit's group: the memory controller's if there is one; None if it has no group."""
        return next(filter(os.path.isdir, self._group(name).directories), None)

    def pids(self, name: str) -> set[int]:
        """Return the processes of a unit, as far as groups tell."""
        return self._group(name).pids

    def kill(self, name: str) -> None:
        """SIGKILL every process of the unit, those that are being made included."""
        self._group(name).kill()

    def count_oom_kills(self, name: str) -> int:
        """Return how many of the unit's processes the kernel has killed for want of memory."""
        return self._group(name).count_oom_kills()

    def remove(self, name: str) -> None:
        """Remove the unit's group if it is empty."""
        self._group(name).remove()

    def _group(self, name: str) -> Group:
        return Group(self._hierarchies, PREFIX + name)
