# SPDX-License-Identifier: Apache-2.0
"""The order in which units start, and what each of them needs. Pure.

Ties are broken by name, so that one set of files always gives one order. What cannot be honoured is an error that
names it: an image is immutable, hence a wrong set of units is wrong at every boot and should not half run.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from enclavekit_core.errors import ConfigError

from enclavekit_enclave_init.units.unit import Unit


@dataclass(frozen=True, slots=True)
class StartPlan:
    """How the units that are to run depend on each other; every key and every member is one of them."""

    order: tuple[str, ...]
    """All of them, each behind those in its `after`."""
    after: Mapping[str, frozenset[str]]
    """What must have started or failed before; includes `requires`."""
    requires: Mapping[str, frozenset[str]]
    """What must be up before, and stay so; includes `binds_to`."""
    binds_to: Mapping[str, frozenset[str]]
    """What it runs no longer than."""
    conflicts: Mapping[str, frozenset[str]]
    """What it cannot run beside, in both directions."""
    notes: tuple[str, ...] = ()
    """What was left out of account, for the log."""


def plan_start(units: Iterable[Unit], also: Collection[str] = ()) -> StartPlan:
    """Order the enabled units, and those in `also`, which somebody wants to start although they are disabled.

    Raises: ConfigError for two units of one name, a requirement that is missing or disabled, enabled units that
        conflict, and a cycle, all by name.
    """
    every: dict[str, Unit] = {}
    for unit in units:
        if unit.name in every:
            raise ConfigError(f"unit {unit.name}", "", "it is defined twice")
        every[unit.name] = unit
    enabled = {name for name, unit in every.items() if unit.enabled or name in also}
    after: dict[str, set[str]] = {name: set() for name in enabled}
    requires: dict[str, set[str]] = {name: set() for name in enabled}
    conflicts: dict[str, set[str]] = {name: set() for name in enabled}
    notes: list[str] = []

    def order(first: str, second: str, key: str, owner: str) -> None:
        other = second if owner == first else first
        if other not in every:
            notes.append(f"{owner}: {key} names {other}, which does not exist")
        elif first in enabled and second in enabled:
            after[second].add(first)

    def require(needed: str, needing: str, owner: str) -> None:
        if needing not in enabled:
            if needing not in every:
                notes.append(f"{owner}: RequiredBy names {needing}, which does not exist")
            return
        if needed not in enabled:
            state = "is disabled" if needed in every else "does not exist"
            raise ConfigError(f"unit {needing}", "Requires", f"{needed} {state}")
        requires[needing].add(needed)
        after[needing].add(needed)

    for name in sorted(every):
        unit = every[name]
        if name not in enabled:
            # what a disabled unit wishes to precede is void, but who is required by somebody must not be disabled
            for needing in unit.required_by:
                require(name, needing, name)
            continue
        for other in unit.after:
            order(other, name, "After", name)
        for other in unit.before:
            order(name, other, "Before", name)
        for other in (*unit.requires, *unit.binds_to):
            require(other, name, name)
        for other in unit.wants:
            if other not in enabled:
                notes.append(
                    f"{name}: Wants names {other}, which {'is disabled' if other in every else 'does not exist'}"
                )
        for other in unit.conflicts:
            if other in enabled:
                if unit.enabled and every[other].enabled:
                    raise ConfigError(f"unit {name}", "Conflicts", f"{other} is enabled too")
                conflicts[name].add(other)
                conflicts[other].add(name)
        for other in unit.required_by:
            require(name, other, name)
    return StartPlan(
        order=_sort(after),
        after={name: frozenset(names) for name, names in after.items()},
        requires={name: frozenset(names) for name, names in requires.items()},
        binds_to={name: frozenset(every[name].binds_to) for name in enabled},
        conflicts={name: frozenset(names) for name, names in conflicts.items()},
        notes=tuple(notes),
    )


def _sort(after: Mapping[str, set[str]]) -> tuple[str, ...]:
    missing = {name: len(names) for name, names in after.items()}
    followers: dict[str, list[str]] = {name: [] for name in after}
    for name, names in after.items():
        for earlier in names:
            followers[earlier].append(name)
    ready = [name for name, count in missing.items() if count == 0]
    heapq.heapify(ready)
    order: list[str] = []
    while ready:
        name = heapq.heappop(ready)
        order.append(name)
        for follower in followers[name]:
            missing[follower] -= 1
            if missing[follower] == 0:
                heapq.heappush(ready, follower)
    if len(order) < len(after):
        cycle = _find_cycle({name: after[name] for name in after.keys() - set(order)})
        raise ConfigError("units", "", f"they wait for each other: {' after '.join(cycle)}")
    return tuple(order)


def _find_cycle(after: Mapping[str, set[str]]) -> list[str]:
    """Return one cycle as a path that ends where it begins; every unit left by Kahn's algorithm leads into one."""
    name, path = min(after), list[str]()
    while name not in path:
        path.append(name)
        name = min(earlier for earlier in after[name] if earlier in after)
    return [*path[path.index(name) :], name]
