# SPDX-License-Identifier: Apache-2.0
"""The memory of an emulated enclave: a cgroup where this user may make one, a limit per process otherwise.

Both versions are served: v2 (memory.max) at /sys/fs/cgroup or /sys/fs/cgroup/unified, v1 (memory.limit_in_bytes).
What the enclave writes into its tmpfs root counts too, on v1 and v2 alike.
Source: Documentation/admin-guide/cgroup-v2.rst, cgroup-v1/memory.rst.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from dataclasses import dataclass

PREFIX = "enclavekit-"
MAX_REMOVE_WAIT_S = 5.0  # the kernel empties a group a moment after its last process has ended
REMOVE_POLL_S = 0.01


@dataclass(frozen=True, slots=True)
class Hierarchy:
    parents: tuple[str, ...]
    """Directories to try, best first."""
    limit_file: str
    swap_file: str
    swap_value: str


def plan_hierarchies(mountinfo: str, own_cgroups: str) -> list[Hierarchy]:
    """Return where a memory group may be made. Pure.

    Args:
        mountinfo: text of /proc/self/mountinfo.
        own_cgroups: text of /proc/self/cgroup.
    """
    own: dict[str, str] = {}
    for line in own_cgroups.splitlines():
        _number, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            own[controller] = path.lstrip("/")
    plans = []
    for line in mountinfo.splitlines():
        front, _, back = line.partition(" - ")
        mount_point = front.split()[4]
        kind, _source, options = back.split(" ", 2)
        if kind == "cgroup2" and "" in own:
            # a group with processes of its own cannot have limited children, so its parent comes first
            parents = (_below(mount_point, os.path.dirname(own[""])), _below(mount_point, own[""]), mount_point)
            plans.append(Hierarchy(parents, "memory.max", "memory.swap.max", "0"))
        elif kind == "cgroup" and "memory" in options.split(",") and "memory" in own:
            places = (_below(mount_point, own["memory"]), mount_point)
            plans.append(Hierarchy(places, "memory.limit_in_bytes", "memory.memsw.limit_in_bytes", ""))
    return plans


def _below(mount_point: str, path: str) -> str:
    return os.path.join(mount_point, path) if path else mount_point


def create_memory_group(enclave_id: str, limit_bytes: int) -> str | None:
    """Make a group with the limit and return its directory; None if this user or machine has no way to.

    The directory is made anew: one that exists already is somebody's and is left alone.
    """
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as source:
        mountinfo = source.read()
    with open("/proc/self/cgroup", encoding="utf-8", errors="surrogateescape") as source:
        own = source.read()
    for plan in plan_hierarchies(mountinfo, own):
        for parent in plan.parents:
            path = os.path.join(parent, PREFIX + enclave_id)
            try:
                os.mkdir(path)
            except OSError:
                continue
            if _limit(path, plan, limit_bytes):
                return path
            os.rmdir(path)
    return None


def _limit(path: str, plan: Hierarchy, limit_bytes: int) -> bool:
    try:
        _write(os.path.join(path, plan.limit_file), str(limit_bytes))
    except OSError:
        return False
    try:
        _write(os.path.join(path, plan.swap_file), plan.swap_value or str(limit_bytes))
    except OSError:
        pass  # a kernel without swap accounting: then there is no swap limit to set
    return True


def join_memory_group(path: str, pid: int) -> bool:
    """Move a process into the group; say whether that was allowed."""
    try:
        _write(os.path.join(path, "cgroup.procs"), str(pid))
    except OSError:
        return False
    return True


def ran_out_of_memory(path: str) -> bool:
    """Say whether the kernel has killed a process of the group for lack of memory."""
    for name in ("memory.events", "memory.oom_control"):
        try:
            with open(os.path.join(path, name), encoding="ascii") as source:
                for line in source:
                    key, _, value = line.partition(" ")
                    if key == "oom_kill":
                        return int(value) > 0
        except (OSError, ValueError):
            continue
    return False


def remove_memory_group(path: str) -> None:
    """Remove a group and those that the enclave has made below it (PID 1 has one for each unit), and kill whatever is
    still in one of them. Raises OSError if one stays busy.
    """
    if not os.path.basename(path).startswith(PREFIX):
        raise ValueError(f"cannot remove cgroup {path}: it is not one of ours")
    deadline = time.monotonic() + MAX_REMOVE_WAIT_S
    while True:
        try:
            _remove_tree(path)
            return
        except FileNotFoundError:
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(REMOVE_POLL_S)


def _remove_tree(top: str) -> None:
    """Remove groups from the leaves up. Raises OSError at the first that is busy, after it has killed what is in it."""
    found = [top]
    while found:
        below = [entry.path for entry in os.scandir(found[-1]) if entry.is_dir(follow_symlinks=False)]
        if below:
            found += below
            continue
        here = found.pop()
        try:
            os.rmdir(here)
        except OSError:
            _kill_group(here)
            raise


def _kill_group(path: str) -> None:
    with contextlib.suppress(OSError), open(os.path.join(path, "cgroup.procs"), encoding="ascii") as source:
        for line in source:
            if int(line) > 1:  # 0 is a process that this namespace does not see
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(int(line), signal.SIGKILL)


def _write(path: str, text: str) -> None:
    # never O_CREAT: where the controller is missing there is no such file, and none must appear elsewhere
    handle = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(handle, text.encode("ascii"))
    finally:
        os.close(handle)
