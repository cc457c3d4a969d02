# SPDX-License-Identifier: Apache-2.0
"""Bind mounts into a unit's root.

That root belongs to the app: a link in it may point anywhere. So the destination is walked to component by component
without following links (openat2 would do that in one call, but 4.14 has none), and mounted on by descriptor.
"""

from __future__ import annotations

import errno
import os
import stat

from enclavekit_core.errors import InputError, describe_cause

from enclavekit_enclave_init.runtime import syscalls
from enclavekit_enclave_init.runtime.mount_table import read_mounted
from enclavekit_enclave_init.units.unit import Unit
from enclavekit_enclave_init.units.values import BindPath

MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_PRIVATE = 2, 4, 4096, 16384, 1 << 18  # mount(2)
API_FILE_SYSTEMS = ("/proc", "/sys", "/dev")


def bind_unit_paths(unit: Unit) -> None:
    """Make the mounts that `unit` asks for, less those that are there from an earlier start.

    Raises: InputError("bind", "SOURCE to DESTINATION", cause).
    """
    root = unit.root_directory.rstrip("/")
    wanted = list(unit.bind_paths)
    if root and unit.mount_api_vfs:
        wanted = [BindPath(path, path, optional=True) for path in API_FILE_SYSTEMS] + wanted
    if not wanted:
        return
    mounted = read_mounted()
    for bind in wanted:
        try:
            _bind(bind, root or "/", mounted)
        except OSError as exc:
            raise InputError("bind", f"{bind.source} to {root}{bind.destination}", describe_cause(exc)) from exc


def open_directory_beneath(root: str, path: str) -> int:
    """Return a descriptor of the directory `path` below `root`, made if missing; no link leads out. Raises OSError."""
    return _open_beneath(root, path, is_directory=True)


def mount_private_tmp(root: str) -> None:
    """Mount an empty /tmp below `root`, in the mount namespace of the caller, which nobody else has. Raises OSError."""
    syscalls.mount("none", "/", "", MS_REC | MS_PRIVATE)
    target = _open_beneath(root, "/tmp", is_directory=True)  # noqa: S108 - a mount point
    try:
        syscalls.mount("tmpfs", f"/proc/self/fd/{target}", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777")
    finally:
        os.close(target)


def _bind(bind: BindPath, root: str, mounted: frozenset[str]) -> None:
    try:
        source = os.open(bind.source, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        if bind.optional:
            return
        raise
    try:
        is_directory = stat.S_ISDIR(os.fstat(source).st_mode)
        target = _open_beneath(root, bind.destination, is_directory)
        try:
            if os.readlink(f"/proc/self/fd/{target}") not in mounted:
                syscalls.mount(f"/proc/self/fd/{source}", f"/proc/self/fd/{target}", "", MS_BIND | MS_REC)
        finally:
            os.close(target)
    finally:
        os.close(source)


def _open_beneath(root: str, path: str, is_directory: bool) -> int:
    """Return an O_PATH descriptor of `path` below `root`, made if missing; a link on the way is an error."""
    flags = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
    parts = [part for part in path.split("/") if part not in ("", ".")]
    handle = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    for index, part in enumerate(parts):
        try:
            if index == len(parts) - 1 and not is_directory:
                _make_file(part, handle)
                following = os.open(part, flags, dir_fd=handle)
                if stat.S_ISLNK(os.fstat(following).st_mode):
                    os.close(following)
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
            else:
                _make_directory(part, handle)
                following = os.open(part, flags | os.O_DIRECTORY, dir_fd=handle)
        finally:
            os.close(handle)
        handle = following
    return handle


def _make_directory(name: str, parent: int) -> None:
    try:
        os.mkdir(name, 0o755, dir_fd=parent)
    except FileExistsError:
        pass


def _make_file(name: str, parent: int) -> None:
    try:
        os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o644, dir_fd=parent))
    except FileExistsError:
        pass
