# SPDX-License-Identifier: Apache-2.0
"""What the process of a unit does to itself between fork and exec: limits, namespaces, root, user, fences.

Any step that fails ends the process with its name: nothing ever runs half-confined. Order matters: what needs rights
comes before they are given up, and what is seen from inside the root comes after entering it.
House rule, as in `spawn`: nothing here imports on its way.
"""

from __future__ import annotations

import os
import platform
import resource
from collections.abc import Callable, Sequence

from enclavekit_core import landlock, seccomp

from enclavekit_enclave_init.runtime import syscalls
from enclavekit_enclave_init.runtime.mounts import mount_private_tmp
from enclavekit_enclave_init.units.bounds import CAPABILITIES, INFINITY
from enclavekit_enclave_init.units.unit import Unit

Step = tuple[str, Callable[[], object]]

MACHINE = platform.machine()


def plan_confinement(unit: Unit, group_fds: Sequence[int], take_identity: Callable[[], None]) -> list[Step]:
    """Return what the child of `unit` has to do, in order, each with its name for a message.

    Args:
        group_fds: `cgroup.procs` of the groups to join. take_identity: changes user and groups.
    """
    steps: list[Step] = []
    for fd in group_fds:
        steps.append(("join its cgroup", lambda fd=fd: os.write(fd, b"0")))  # type: ignore[misc]
    if unit.oom_score_adjust is not None:
        score = str(unit.oom_score_adjust)
        steps.append(("set its OOM score", lambda: _write_file("/proc/self/oom_score_adj", score)))
    for name, soft, hard in unit.limits:
        number = getattr(resource, f"RLIMIT_{name}")
        pair = tuple(resource.RLIM_INFINITY if value == INFINITY else value for value in (soft, hard))
        steps.append((f"set Limit{name}", lambda n=number, p=pair: resource.setrlimit(n, p)))  # type: ignore[misc]
    if unit.private_network:
        steps.append(("have a private network", lambda: syscalls.unshare(syscalls.CLONE_NEWNET)))
        steps.append(("bring its loopback interface up", syscalls.bring_loopback_up))
    root = unit.root_directory.rstrip("/") or "/"
    if unit.private_tmp:
        steps.append(("have a private /tmp", lambda: syscalls.unshare(syscalls.CLONE_NEWNS)))
        steps.append(("have a private /tmp", lambda: mount_private_tmp(root)))
    if root != "/":
        steps.append((f"enter root directory {root}", lambda: os.chroot(root)))
    steps.append((f"enter working directory {unit.working_directory}", lambda: os.chdir(unit.working_directory)))
    if unit.capabilities is not None:
        keep = frozenset(unit.capabilities)
        drop = [number for number in range(len(CAPABILITIES)) if number not in keep]
        steps.append(("give up capabilities", lambda: syscalls.drop_capabilities(drop)))
    fenced = unit.landlock_read is not None or unit.landlock_write is not None
    ruleset: list[int] = []
    if fenced:
        # its paths are opened with the rights of PID 1, as those of a bind mount are
        steps.append(("be fenced in", lambda: ruleset.append(_make_fence(unit))))
    steps.append(("take its user and group", take_identity))
    if unit.no_new_privileges or fenced or unit.seccomp:
        steps.append(("refuse new privileges", syscalls.refuse_new_privileges))
    if fenced:
        steps.append(("be fenced in", lambda: landlock.restrict_self(ruleset[0])))
    if unit.seccomp:
        program = seccomp.build_filter(unit.seccomp, MACHINE)
        steps.append(("have its system calls filtered", lambda: syscalls.filter_calls(program)))
    return steps


def _make_fence(unit: Unit) -> int:
    def open_path(path: str) -> int:
        return os.open(path, os.O_PATH | os.O_CLOEXEC)

    return landlock.make_ruleset(open_path, unit.landlock_read or (), unit.landlock_write or (), f"unit {unit.name}")


def _write_file(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)
