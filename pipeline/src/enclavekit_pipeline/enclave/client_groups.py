# SPDX-License-Identifier: Apache-2.0
"""A control group for each client whose entry limits it: all that it runs is in there, whatever session began it, and
what that runs in turn, detached jobs included.

They are below the listener's own group, so that whatever bounds or ends the listener does so with them. What an entry
demands and cannot be had keeps the listener from starting.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator

from enclavekit_core.cgroups import Group, find_hierarchies
from enclavekit_core.errors import ConfigError, InputError

from enclavekit_pipeline.enclave.clients import LIMIT_KEYS, Grant, Refused


class ClientGroups:
    """Those of one listener; none for who has no limit."""

    def __init__(self) -> None:
        self._groups: dict[str, Group] = {}  # by client

    @classmethod
    def make(cls, grants: Iterable[Grant], source: str) -> ClientGroups:
        """Make the groups that the entries ask for; call it before there are other processes of ours.

        Args: source: of the entries, for messages.
        Raises: ConfigError if one of them cannot be made, or cannot be limited so.
        """
        made = cls()
        limited = [grant for grant in grants if grant.limits]
        hierarchies = find_hierarchies(step_aside=True) if limited else {}
        try:
            for number, grant in enumerate(limited):
                needed = [name for name, is_set in grant.limits.controllers.items() if is_set]
                for name in needed:
                    if name not in hierarchies:
                        reason = f"{LIMIT_KEYS[name]}: no cgroup with the controller {name} can be made here"
                        raise ConfigError(source, grant.name, reason)
                # by number: a client may be called as it likes
                group = Group({name: hierarchies[name] for name in needed}, f"client-{os.getpid()}-{number}")
                made._groups[grant.name] = group
                for descriptor in group.make(grant.limits, grant.name):
                    os.close(descriptor)
        except InputError as exc:
            made.close()
            raise ConfigError(source, grant.name, f"its limits: {exc}") from exc
        except BaseException:
            made.close()
            raise
        return made

    @contextlib.contextmanager
    def joining(self, grant: Grant) -> Iterator[list[int]]:
        """Yield descriptors to which a process of the client writes `0` first; none if it has no group.

        Raises: Refused if the client has as many processes as it may: the kernel keeps them from forking, but not
            others from coming in. InputError if the group is gone.
        """
        group = self._groups.get(grant.name)
        if group is None:
            yield []
            return
        if grant.limits.tasks_max and group.count_tasks() >= grant.limits.tasks_max:
            raise Refused(f"{grant.name} has {grant.limits.tasks_max} processes already")
        descriptors = group.make(grant.limits, grant.name)
        try:
            yield descriptors
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def close(self) -> None:
        """End what is in the groups, remove them. Idempotent."""
        for group in self._groups.values():
            group.kill()
            group.remove()
