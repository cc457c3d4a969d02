# SPDX-License-Identifier: Apache-2.0
"""What a unit asks to be protected by, and what this machine cannot give of that. Pure.

A unit starts without a protection only if its file says so (`InsecureMayLack`): one that is silently missing is worse
than a unit that does not run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from enclavekit_enclave_init.units.unit import Unit

# key -> the attribute, and what it is without it
ASKED: Mapping[str, tuple[str, object]] = {
    "MemoryMax": ("memory_max", 0),
    "CPUQuota": ("cpu_quota", 0.0),
    "TasksMax": ("tasks_max", 0),
    "LandlockRead": ("landlock_read", None),
    "LandlockWrite": ("landlock_write", None),
    "SeccompProfile": ("seccomp", ""),
    "PrivateNetwork": ("private_network", False),
    "PrivateTmp": ("private_tmp", False),
    "CapabilityBoundingSet": ("capabilities", None),
    "OOMScoreAdjust": ("oom_score_adjust", None),
}
NEEDS_CONTROLLER = {"MemoryMax": "memory", "CPUQuota": "cpu", "TasksMax": "pids"}


@dataclass(frozen=True, slots=True)
class Abilities:
    """What this machine can do."""

    controllers: frozenset[str] = frozenset()
    """cgroup controllers."""
    landlock: bool = False
    seccomp: bool = False
    """The kernel filters system calls, and there is a profile for its architecture."""
    network_namespaces: bool = False
    mount_namespaces: bool = False


def find_missing(unit: Unit, abilities: Abilities) -> dict[str, str]:
    """Return per key that the unit has, and this machine cannot keep, what is missing."""
    missing = {}
    for key, (attribute, absent) in ASKED.items():
        if getattr(unit, attribute) == absent:
            continue
        controller = NEEDS_CONTROLLER.get(key)
        if controller is not None and controller not in abilities.controllers:
            missing[key] = f"there is no {controller} controller"
        elif key in ("LandlockRead", "LandlockWrite") and not abilities.landlock:
            missing[key] = "this kernel has no Landlock"
        elif key == "SeccompProfile" and not abilities.seccomp:
            missing[key] = "this kernel does not filter system calls"
        elif key == "PrivateNetwork" and not abilities.network_namespaces:
            missing[key] = "network namespaces cannot be made"
        elif key == "PrivateTmp" and not abilities.mount_namespaces:
            missing[key] = "mount namespaces cannot be made"
    return missing


def settle_protections(unit: Unit, abilities: Abilities) -> tuple[Unit, list[str], str]:
    """Return the unit as it can be started, what it then lacks, and, if it must not start, why."""
    missing = find_missing(unit, abilities)
    refused = [f"{key} cannot be kept: {why}" for key, why in missing.items() if key not in unit.insecure_may_lack]
    if refused:
        return unit, [], "; ".join(refused)
    bare = replace(unit, **{ASKED[key][0]: ASKED[key][1] for key in missing})  # type: ignore[arg-type]
    return bare, [f"{key} (insecure: {why})" for key, why in missing.items()], ""
