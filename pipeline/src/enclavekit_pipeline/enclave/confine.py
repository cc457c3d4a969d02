# SPDX-License-Identifier: Apache-2.0
"""What a command's process does to itself between fork and exec: root, user, limits, fences.

All of it is looked up and made ready here, before the fork; `forker` does it. A step that fails ends the child, so
nothing ever runs half-confined.
"""

from __future__ import annotations

import contextlib
import os
import platform
import resource
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from enclavekit_core import landlock, seccomp
from enclavekit_core.errors import InputError

from enclavekit_pipeline.enclave.clients import Grant, Refused
from enclavekit_pipeline.enclave.forker import REPORT, Step
from enclavekit_pipeline.enclave.root import Root
from enclavekit_pipeline.wire.exec_messages import Surroundings

RESOURCES = {
    "core": resource.RLIMIT_CORE,
    "cpu": resource.RLIMIT_CPU,
    "fsize": resource.RLIMIT_FSIZE,
    "memory": resource.RLIMIT_AS,
    "nofile": resource.RLIMIT_NOFILE,
    "nproc": resource.RLIMIT_NPROC,
    "stack": resource.RLIMIT_STACK,
}
# what would lead root out of the app's root: DAC_READ_SEARCH (handles), LINUX_IMMUTABLE, SYS_MODULE, SYS_RAWIO,
# SYS_CHROOT, SYS_PTRACE, SYS_PACCT, SYS_ADMIN, SYS_BOOT, SYS_TIME, MKNOD, MAC_OVERRIDE, MAC_ADMIN, SYSLOG, PERFMON,
# BPF, CHECKPOINT_RESTORE; capabilities(7)
DROPPED_CAPABILITIES = [2, 9, 16, 17, 18, 19, 20, 21, 22, 25, 27, 32, 33, 34, 38, 39, 40]


@dataclass(frozen=True)
class Account:
    """Whom a command runs as."""

    uid: int
    gid: int
    home: str
    changes: bool
    """False: it stays what the listener is."""


def find_account(request: Surroundings, grant: Grant, root: Root) -> Account:
    """Return whom the request runs as: whom it names, else whom the client's entry names. Raises InputError."""
    if user := request.user or grant.user:
        return Account(*root.find_user(user), changes=True)
    return Account(os.geteuid(), os.getegid(), "/", changes=False)


@dataclass
class Preparation:
    """Steps, and the descriptors that they name by their place after the report."""

    steps: list[Step] = field(default_factory=list)
    descriptors: list[int] = field(default_factory=list)

    def add(self, name: str, operation: str, argument: object = None) -> None:
        self.steps.append((name, operation, argument))

    def add_with(self, name: str, operation: str, descriptor: int) -> None:
        self.descriptors.append(descriptor)
        self.add(name, operation, REPORT + len(self.descriptors))


@contextlib.contextmanager
def confinement(
    request: Surroundings, grant: Grant, root: Root, account: Account, groups: Sequence[int] = ()
) -> Iterator[Preparation]:
    """Yield what the child has to do, in this order.

    Raises: InputError if the kernel lacks what the entry demands, Refused for a user whom it would not bind.

    Args: groups: descriptors of the control groups that it joins, `cgroup.procs`.
    """
    with contextlib.ExitStack() as stack:
        todo = Preparation()
        if groups and account.uid == 0:
            raise Refused(f"{grant.name} has limits, which do not hold root")
        for group in groups:  # first of all: what it takes from here on counts
            todo.add_with("join its cgroup", "join", group)
        directory = request.directory or "/"
        if root.path != "/":
            todo.add_with("enter its root", "enter", root.descriptor)
            todo.add("enter its root", "chroot", ".")
        if request.terminal is not None:
            todo.add("take its terminal", "terminal")
        for name, value in request.limits.items():
            todo.add(f"limit {name}", "limit", (RESOURCES[name], value))
        if not grant.system:
            todo.add("give up capabilities", "capabilities", DROPPED_CAPABILITIES)
        if account.changes:
            todo.add("become the user", "groups", account.gid)
            todo.add("become the user", "group", account.gid)
            todo.add("become the user", "user", account.uid)
        # as that user: what is below a directory that is closed to it is not its to enter, nor to know of
        todo.add(f"enter {directory}", "chdir", directory)
        # after the change of user, which clears it
        todo.add("be tied to the listener", "die-with", os.getpid())
        if grant.landlock is not None or grant.seccomp is not None or groups or not grant.system:
            todo.add("refuse new privileges", "privileges")
        if grant.landlock is not None:
            ruleset = landlock.make_ruleset(
                lambda path: root.open(path, os.O_PATH), grant.landlock.read, grant.landlock.write, "the command"
            )
            stack.callback(os.close, ruleset)
            todo.add_with("be fenced in", "landlock", ruleset)
        if grant.seccomp is not None:
            machine = platform.machine()
            if machine not in seccomp.ARCHITECTURES:
                raise InputError("filter the system calls of", "the command", f"there is no profile for {machine}")
            todo.add("filter its system calls", "seccomp", seccomp.build_filter(grant.seccomp, machine))
        yield todo
