# SPDX-License-Identifier: Apache-2.0
"""Control groups: a directory per unit that holds all its processes, whatever they do, and bounds what they use.

Each controller is taken where the kernel has it: in the one hierarchy of version 2, or in one of its own of version 1
(a 4.14 has no cpu controller in version 2). Source: cgroups(7), admin-guide/cgroup-v2.rst and cgroup-v1 of the kernel.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass

from enclavekit_core.errors import InputError, describe_cause

from enclavekit_enclave_init.units.unit import Unit

CONTROLLERS = ("memory", "pids", "cpu")
CPU_PERIOD_US = 100_000
MAX_KILL_ROUNDS = 50  # against a unit that forks while it is being killed
PREFIX = "unit-"


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """A place where groups can be made."""

    version: int
    directory: str
    """PID 1's own group in it."""


def parse_hierarchies(mountinfo: str, own: str, controllers_of: Mapping[str, str]) -> dict[str, Hierarchy]:
    """Return where each controller is, and under "" the hierarchy of version 2 if there is one. Pure.

    Args:
        mountinfo: /proc/self/mountinfo. own: /proc/self/cgroup.
        controllers_of: per mount point of version 2, what its cgroup.controllers says.
    """
    own_path = {}
    for line in own.splitlines():
        _, names, path = line.split(":", 2)
        for name in names.split(","):
            own_path[name] = path
    found: dict[str, Hierarchy] = {}
    for line in mountinfo.splitlines():
        head, _, tail = line.partition(" - ")
        words, filesystem = head.split(" "), tail.split(" ")
        if len(words) < 5 or len(filesystem) < 3 or filesystem[0] not in ("cgroup", "cgroup2"):
            continue
        mount_root, point = words[3], words[4]
        if filesystem[0] == "cgroup2":
            here = Hierarchy(2, _join(point, own_path.get("", "/"), mount_root))
            found.setdefault("", here)
            for name in controllers_of.get(point, "").split():
                if name in CONTROLLERS:
                    found.setdefault(name, here)
        else:
            for name in filesystem[2].split(","):
                if name in CONTROLLERS:
                    found.setdefault(name, Hierarchy(1, _join(point, own_path.get(name, "/"), mount_root)))
    return found


def _join(point: str, own: str, mount_root: str) -> str:
    below = own.removeprefix(mount_root) if mount_root != "/" else own
    return os.path.normpath(f"{point}/{below}") if ".." not in below.split("/") else point


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
        try:
            mountinfo, own = _read("/proc/self/mountinfo"), _read("/proc/self/cgroup")
        except OSError:
            return cls({})
        offered = {}
        for line in mountinfo.splitlines():
            if " - cgroup2 " in line:
                point = line.split(" ")[4]
                try:
                    offered[point] = _read(f"{point}/cgroup.controllers")
                except OSError:
                    continue
        hierarchies = parse_hierarchies(mountinfo, own, offered)
        usable = {}
        for name, hierarchy in hierarchies.items():
            if not os.access(hierarchy.directory, os.W_OK):
                continue
            directory = os.path.join(hierarchy.directory, parent).rstrip("/")
            try:
                os.makedirs(directory, 0o755, exist_ok=True)
                if hierarchy.version == 2 and name:
                    for level in dict.fromkeys((hierarchy.directory, directory)):
                        _write(f"{level}/cgroup.subtree_control", f"+{name}")
            except OSError:
                continue  # a group that has processes itself cannot hand a controller down
            usable[name] = Hierarchy(hierarchy.version, directory)
        return cls(usable, removable=bool(parent))

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
                        _remove(os.path.join(directory, name))
            except OSError:
                continue
            _remove(directory)

    def prepare(self, unit: Unit) -> list[int]:
        """Make the group of `unit` with its limits; return descriptors to which the child writes `0` to join.

        Raises: InputError for a limit that cannot be set.
        """
        descriptors: list[int] = []
        try:
            for directory in self._directories(unit.name):
                try:
                    os.makedirs(directory, 0o755, exist_ok=True)
                except OSError as exc:
                    if unit.has_cgroup_limits:
                        raise InputError("make", f"the cgroup of {unit.name}", describe_cause(exc)) from exc
                    continue
                descriptors.append(os.open(f"{directory}/cgroup.procs", os.O_WRONLY | os.O_CLOEXEC))
            for path, text in self._settings(unit):
                try:
                    _write(path, text)
                except OSError as exc:
                    what = f"{os.path.basename(path)} of {unit.name}"
                    raise InputError("set", what, describe_cause(exc)) from exc
        except BaseException:
            for fd in descriptors:
                os.close(fd)
            raise
        return descriptors

    def _settings(self, unit: Unit) -> list[tuple[str, str]]:
        settings = []
        for controller, value, old, new in (
            ("memory", unit.memory_max, "memory.limit_in_bytes", "memory.max"),
            ("pids", unit.tasks_max, "pids.max", "pids.max"),
        ):
            if controller in self.controllers and value:
                name = old if self._hierarchies[controller].version == 1 else new
                settings.append((f"{self._path(controller, unit.name)}/{name}", str(value)))
        if "cpu" in self.controllers and unit.cpu_quota:
            quota, path = int(unit.cpu_quota * CPU_PERIOD_US), self._path("cpu", unit.name)
            if self._hierarchies["cpu"].version == 1:
                settings.append((f"{path}/cpu.cfs_period_us", str(CPU_PERIOD_US)))
                settings.append((f"{path}/cpu.cfs_quota_us", str(quota)))
            else:
                settings.append((f"{path}/cpu.max", f"{quota} {CPU_PERIOD_US}"))
        return settings

    def directory_of(self, name: str) -> str | None:
        """Return the unit's group: the memory controller's if there is one; None if it has no group."""
        for path in self._directories(name):
            if os.path.isdir(path):
                return path
        return None

    def pids(self, name: str) -> set[int]:
        """Return the processes of a unit, as far as groups tell."""
        found: set[int] = set()
        for directory in self._directories(name):
            try:
                found |= {int(word) for word in _read(f"{directory}/cgroup.procs").split()}
            except OSError:
                continue
        return found - {0}

    def kill(self, name: str) -> None:
        """SIGKILL every process of the unit, those that are being made included."""
        for directory in self._directories(name):
            try:
                _write(f"{directory}/cgroup.kill", "1")  # Linux 5.14, version 2
            except OSError:
                continue
        for _ in range(MAX_KILL_ROUNDS):
            living = [pid for pid in self.pids(name) if not _is_zombie(pid)]
            for pid in living:
                try:
                    os.kill(pid, signal.SIGKILL)
                except (ProcessLookupError, PermissionError):
                    continue
            if not living:
                return

    def count_oom_kills(self, name: str) -> int:
        """Return how many of the unit's processes the kernel has killed for want of memory."""
        if "memory" not in self._hierarchies:
            return 0
        path = self._path("memory", name)
        for file in ("memory.events", "memory.oom_control"):  # version 2, version 1 (Linux 4.13)
            try:
                lines = _read(f"{path}/{file}").splitlines()
            except OSError:
                continue
            return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)
        return 0

    def remove(self, name: str) -> None:
        """Remove the unit's group if it is empty."""
        for directory in self._directories(name):
            _remove(directory)

    def _directories(self, name: str) -> list[str]:
        ordered = [*(c for c in CONTROLLERS if c in self._hierarchies), *({""} & self._hierarchies.keys())]
        return list(dict.fromkeys(self._path(controller, name) for controller in ordered))

    def _path(self, controller: str, name: str) -> str:
        return f"{self._hierarchies[controller].directory}/{PREFIX}{name}"


def _remove(directory: str) -> None:
    try:
        os.rmdir(directory)
    except OSError:
        pass  # it is not there, or not empty


def _is_zombie(pid: int) -> bool:
    try:
        return _read(f"/proc/{pid}/stat").rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def _read(path: str) -> str:
    with open(path, encoding="utf-8", errors="surrogateescape") as source:
        return source.read()


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)
