# SPDX-License-Identifier: Apache-2.0
"""Starts the process of a unit.

Between fork and exec the child runs Python: this process has one thread, so that is sound. What fails there comes back
through a pipe that exec closes: a program that cannot be run is a failure with a reason, not an odd exit status.
House rule: nothing here imports on its way (an encoding other than UTF-8 would): after chroot there is no Python.
"""

from __future__ import annotations

import os
import signal
import warnings  # noqa: F401 - os.execvpe imports it, see the house rule
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

from enclavekit_core.errors import ConfigError

from enclavekit_enclave_init.runtime.confine import Step, plan_confinement
from enclavekit_enclave_init.units.commands import parse_environment_lines
from enclavekit_enclave_init.units.unit import DEFAULT_PATH, Unit

STATUS_NOT_FOUND, STATUS_CANNOT_RUN = 127, 126  # as shells and docker have it
MAX_FAILURE_BYTES = 4096
MAX_ACCOUNT_FILE_BYTES = 1024 * 1024
MAX_ENVIRONMENT_FILE_CHARS = 256 * 1024  # execve(2) takes an environment of a few times that
UMASK = 0o022


@dataclass(frozen=True, slots=True)
class Child:
    """A process on its way to exec, and our ends of its pipes, all non-blocking and close-on-exec."""

    pid: int
    failure_fd: int
    """Ends without data once the program runs; else gives why it does not."""
    stdout_fd: int
    stderr_fd: int


def build_environment(unit: Unit, base: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Return the exact environment of `unit`: `base`, its own above that, its files', and PATH if none has it.

    Raises: OSError for a file that cannot be read, ConfigError for one that is not an environment file.
    """
    environment = {"PATH": DEFAULT_PATH} | dict(base) | dict(unit.environment)
    for file in unit.environment_files:
        try:
            with open(file.path, encoding="utf-8") as source:
                text = source.read(MAX_ENVIRONMENT_FILE_CHARS + 1)
        except FileNotFoundError:
            if file.optional:
                continue
            raise
        except UnicodeDecodeError as exc:
            raise ConfigError(file.path, "", "it is not UTF-8") from exc
        if len(text) > MAX_ENVIRONMENT_FILE_CHARS:
            raise ConfigError(file.path, "", f"it is longer than {MAX_ENVIRONMENT_FILE_CHARS} characters")
        try:
            environment |= dict(parse_environment_lines(text))
        except ValueError as exc:
            raise ConfigError(file.path, "", str(exc)) from exc
    return environment


def spawn(
    unit: Unit, base: Sequence[tuple[str, str]], stdin_fd: int, group_fds: Sequence[int] = (), notify_path: str = ""
) -> Child:
    """Fork and run `unit`.

    Args:
        group_fds: `cgroup.procs` of the groups to join; the caller closes them.
        notify_path: what NOTIFY_SOCKET is to be; empty: nothing.
    Raises: OSError if there is no process or no pipe to be had, and as `build_environment`.
    """
    environment = build_environment(unit, base)
    if notify_path:
        environment["NOTIFY_SOCKET"] = notify_path
        if unit.watchdog_s:
            environment["WATCHDOG_USEC"] = str(int(unit.watchdog_s * 1_000_000))
    steps = plan_confinement(unit, group_fds, lambda: _take_identity(unit))
    fds: list[int] = []
    try:
        for _ in range(3):
            fds += os.pipe()  # close-on-exec
        failure, failure_child, out, out_child, err, err_child = fds
        # the child inherits this: a signal must not reach a handler of ours there
        previous = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            pid = os.fork()
            if pid == 0:
                _run_child(unit, environment, (stdin_fd, out_child, err_child), failure_child, steps)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, previous)
    except BaseException:
        for fd in fds:
            os.close(fd)
        raise
    for fd in (failure_child, out_child, err_child):
        os.close(fd)
    for fd in (failure, out, err):
        os.set_blocking(fd, False)
    return Child(pid, failure, out, err)


def _run_child(
    unit: Unit, environment: dict[str, str], stdio: tuple[int, int, int], failure_fd: int, steps: list[Step]
) -> NoReturn:
    step = "start"
    status = STATUS_CANNOT_RUN
    try:
        os.setsid()
        for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
            signal.signal(number, signal.SIG_DFL)
        for fd, source in enumerate(stdio):
            os.dup2(source, fd)
        os.umask(UMASK)
        for step, run in steps:  # noqa: B007 - named when one fails
            run()
        step = f"run {unit.argv[0]}"
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        os.execvpe(unit.argv[0], unit.argv, environment)  # noqa: S606 - this is what the module is for
    except FileNotFoundError as exc:
        status = STATUS_NOT_FOUND if step.startswith("run ") else STATUS_CANNOT_RUN
        os.write(failure_fd, _encode_failure(step, exc))
    except BaseException as exc:
        os.write(failure_fd, _encode_failure(step, exc))
    finally:
        os._exit(status)


def _encode_failure(step: str, exc: BaseException) -> bytes:
    cause = os.strerror(exc.errno).lower() if isinstance(exc, OSError) and exc.errno else str(exc)
    return f"cannot {step}: {cause}".encode(errors="backslashreplace")[:MAX_FAILURE_BYTES]


def _take_identity(unit: Unit) -> None:
    """Set uid, gid and exactly the unit's supplementary groups, with names as the unit's own root has them."""
    uid, gid = 0, 0
    if unit.user:
        uid, gid = find_user(unit.user, read_account_file("/etc/passwd"))
    if unit.group:
        gid = find_group(unit.group, read_account_file("/etc/group"))
    groups = []
    if unit.supplementary_groups:
        listed = read_account_file("/etc/group")
        groups = [find_group(group, listed) for group in unit.supplementary_groups]
    try:
        os.setgroups(groups)
    except PermissionError:
        # a user namespace made without privilege has none of the outside's groups to lose, and may not set any
        if not _groups_are_denied() or groups:
            raise
    if unit.user or unit.group:
        for fd in (1, 2):
            # else opening /dev/stdout, as many images do with their log files, is refused: a pipe has an owner too
            os.fchown(fd, uid, gid)
        os.setresgid(gid, gid, gid)
    if unit.user:
        os.setresuid(uid, uid, uid)


def _groups_are_denied() -> bool:
    try:
        with open("/proc/self/setgroups", encoding="utf-8") as source:
            return source.read().strip() == "deny"
    except OSError:
        return False


def read_account_file(path: str) -> str:
    """Return /etc/passwd or /etc/group; empty where there is none, as in an image of one binary."""
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as source:
            return source.read(MAX_ACCOUNT_FILE_BYTES)
    except FileNotFoundError:
        return ""


def find_user(user: str, passwd: str) -> tuple[int, int]:
    """Return (uid, gid) of a name or number; a number without an entry has gid 0, as docker has it.

    Raises: LookupError for a name without an entry.
    """
    for line in passwd.splitlines():
        fields = line.split(":")
        if len(fields) >= 4 and fields[2].isdigit() and fields[3].isdigit() and user in (fields[0], fields[2]):
            return int(fields[2]), int(fields[3])
    if user.isdigit():
        return int(user), 0
    raise LookupError(f"there is no user {user} in its /etc/passwd")


def find_group(group: str, file: str) -> int:
    """Return the gid of a name or number. Raises LookupError for a name without an entry."""
    if group.isdigit():
        return int(group)
    for line in file.splitlines():
        fields = line.split(":")
        if len(fields) >= 3 and fields[0] == group and fields[2].isdigit():
            return int(fields[2])
    raise LookupError(f"there is no group {group} in its /etc/group")
