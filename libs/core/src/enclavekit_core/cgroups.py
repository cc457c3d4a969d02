# SPDX-License-Identifier: Apache-2.0
"""Control groups: directories that hold processes, whatever these do, and bound what they use together.

Each controller is taken where the kernel has it: in the one hierarchy of version 2, or in one of its own of version 1
(a 4.14 has no cpu controller in version 2). Source: cgroups(7), admin-guide/cgroup-v2.rst and cgroup-v1 of the kernel.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass

from enclavekit_core.amounts import parse_percent, parse_size, parse_tasks
from enclavekit_core.errors import InputError, describe_cause

CONTROLLERS = ("memory", "pids", "cpu")
CPU_PERIOD_US = 100_000
MAX_KILL_ROUNDS = 50  # against processes that fork while they are being killed
LEAF = "own"  # of a group that has handed controllers down, for its own processes
MAX_DEPTH = 8  # of groups that those in a group have made below it


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """A place where groups can be made."""

    version: int
    directory: str
    """Our own group in it."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Of all processes of a group together; 0: none."""

    memory_max: int = 0
    """Bytes; above, the kernel kills one of the processes."""
    tasks_max: int = 0
    """Processes and threads."""
    cpu_quota: float = 0.0
    """Processors."""

    @classmethod
    def parse(cls, memory_max: int | str | None, tasks_max: int | None, cpu_quota: str | None) -> Limits:
        """Return those that a configuration asks for; None: none. Raises ValueError with the key and its rule."""
        found: dict[str, int | float] = {}
        for key, value, parse in (
            ("memory_max", memory_max, parse_size),
            ("tasks_max", tasks_max, parse_tasks),
            ("cpu_quota", cpu_quota, parse_percent),
        ):
            if value is not None:
                try:
                    found[key] = parse(value)
                    if not found[key]:
                        raise ValueError("nothing runs with none at all")
                except ValueError as exc:
                    raise ValueError(f"{key}: {exc}") from exc
        return cls(**found)  # type: ignore[arg-type]  # each has its parser's type

    @property
    def controllers(self) -> dict[str, bool]:
        """By controller, whether a limit is set with it."""
        return {"memory": self.memory_max > 0, "pids": self.tasks_max > 0, "cpu": self.cpu_quota > 0}

    def __bool__(self) -> bool:
        return any(self.controllers.values())


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


def find_hierarchies(parent: str = "", *, step_aside: bool = False) -> dict[str, Hierarchy]:
    """Return those in which this process can make groups; with version 2, hand its controllers down to them.

    None of it being there is no error.

    Args:
        parent: a directory for all groups, made in our own.
        step_aside: with version 2, groups below one that has processes itself take none: this process moves into LEAF
            below its own first. It has to be the only one there.
    """
    try:
        mountinfo, own = _read("/proc/self/mountinfo"), _read("/proc/self/cgroup")
    except OSError:
        return {}
    offered = {}
    for line in mountinfo.splitlines():
        if " - cgroup2 " in line:
            point = line.split(" ")[4]
            try:
                offered[point] = _read(f"{point}/cgroup.controllers")
            except OSError:
                continue
    usable = {}
    for name, hierarchy in parse_hierarchies(mountinfo, own, offered).items():
        if not os.access(hierarchy.directory, os.W_OK):
            continue
        directory = os.path.join(hierarchy.directory, parent).rstrip("/")
        try:
            os.makedirs(directory, 0o755, exist_ok=True)
            if hierarchy.version == 2 and name:
                if step_aside:
                    _step_aside(hierarchy.directory)
                for level in dict.fromkeys((hierarchy.directory, directory)):
                    _write(f"{level}/cgroup.subtree_control", f"+{name}")
        except OSError:
            continue
        usable[name] = Hierarchy(hierarchy.version, directory)
    return usable


def _step_aside(directory: str) -> None:
    if os.path.exists(f"{directory}/cgroup.type"):  # not the root, which may have both
        os.makedirs(f"{directory}/{LEAF}", 0o755, exist_ok=True)
        _write(f"{directory}/{LEAF}/cgroup.procs", "0")


class Group:
    """One group, in every hierarchy that is given; it need not exist."""

    def __init__(self, hierarchies: Mapping[str, Hierarchy], name: str) -> None:
        self._paths = {
            controller: f"{hierarchies[controller].directory}/{name}"
            for controller in (*CONTROLLERS, "")
            if controller in hierarchies
        }
        self._versions = {controller: hierarchies[controller].version for controller in self._paths}
        self.directories = list(dict.fromkeys(self._paths.values()))
        """The memory controller's first, where it has one."""

    def make(self, limits: Limits, label: str) -> list[int]:
        """Make it with these limits; return descriptors to which a process writes `0` to join.

        Args: label: what it is for, in messages.
        Raises: InputError for a limit that cannot be set.
        """
        descriptors: list[int] = []
        try:
            for directory in self.directories:
                try:
                    os.makedirs(directory, 0o755, exist_ok=True)
                except OSError as exc:
                    if limits:
                        raise InputError("make", f"the cgroup of {label}", describe_cause(exc)) from exc
                    continue
                descriptors.append(os.open(f"{_entrance(directory)}/cgroup.procs", os.O_WRONLY | os.O_CLOEXEC))
            for path, text in self._settings(limits):
                try:
                    _write(path, text)
                except OSError as exc:
                    what = f"{os.path.basename(path)} of {label}"
                    raise InputError("set", what, describe_cause(exc)) from exc
        except BaseException:
            for fd in descriptors:
                os.close(fd)
            raise
        return descriptors

    def _settings(self, limits: Limits) -> list[tuple[str, str]]:
        settings = []
        for controller, value, old, new in (
            ("memory", limits.memory_max, "memory.limit_in_bytes", "memory.max"),
            ("pids", limits.tasks_max, "pids.max", "pids.max"),
        ):
            if controller in self._paths and value:
                name = old if self._versions[controller] == 1 else new
                settings.append((f"{self._paths[controller]}/{name}", str(value)))
        if "cpu" in self._paths and limits.cpu_quota:
            quota, path = int(limits.cpu_quota * CPU_PERIOD_US), self._paths["cpu"]
            if self._versions["cpu"] == 1:
                settings.append((f"{path}/cpu.cfs_period_us", str(CPU_PERIOD_US)))
                settings.append((f"{path}/cpu.cfs_quota_us", str(quota)))
            else:
                settings.append((f"{path}/cpu.max", f"{quota} {CPU_PERIOD_US}"))
        return settings

    @property
    def pids(self) -> set[int]:
        """The processes in it and in the groups that they have made below it."""
        found: set[int] = set()
        for directory in self._all_directories():
            try:
                found |= {int(word) for word in _read(f"{directory}/cgroup.procs").split()}
            except OSError:
                continue
        return found - {0}

    def kill(self) -> None:
        """SIGKILL every process in it, those that are being made included."""
        for directory in self.directories:
            try:
                _write(f"{directory}/cgroup.kill", "1")  # Linux 5.14, version 2
            except OSError:
                continue
        for _ in range(MAX_KILL_ROUNDS):
            living = [pid for pid in self.pids if not _is_zombie(pid)]
            for pid in living:
                try:
                    os.kill(pid, signal.SIGKILL)
                except (ProcessLookupError, PermissionError):
                    continue
            if not living:
                return

    def count_tasks(self) -> int:
        """Return how many processes and threads are in it; 0 without the controller."""
        try:
            return int(_read(f"{self._paths['pids']}/pids.current"))
        except (KeyError, OSError):
            return 0

    def count_oom_kills(self) -> int:
        """Return how many of its processes the kernel has killed for want of memory."""
        for file in ("memory.events", "memory.oom_control") if "memory" in self._paths else ():  # version 2; 1, 4.13
            try:
                lines = _read(f"{self._paths['memory']}/{file}").splitlines()
            except OSError:
                continue
            return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)
        return 0

    def remove(self) -> None:
        """Remove it, and those below it, as far as they are empty."""
        for directory in reversed(self._all_directories()):
            remove(directory)

    def _all_directories(self) -> list[str]:
        """Return those above before those below."""
        found = [directory for directory in self.directories if os.path.isdir(directory)]
        level = found
        for _ in range(MAX_DEPTH):
            level = [entry.path for directory in level for entry in _scan(directory)]
            found = found + level
        return found


def _entrance(directory: str) -> str:
    """Return where processes of a group go: not into itself once it has handed controllers down."""
    try:
        if not _read(f"{directory}/cgroup.subtree_control").strip():
            return directory
        os.makedirs(f"{directory}/{LEAF}", 0o755, exist_ok=True)
    except OSError:  # version 1 has no such file
        return directory
    return f"{directory}/{LEAF}"


def remove(directory: str) -> None:
    """Remove a group where it is empty."""
    try:
        os.rmdir(directory)
    except OSError:
        pass  # it is not there, or not empty


def _scan(directory: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(directory) as entries:
            return [entry for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return []


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
