# SPDX-License-Identifier: Apache-2.0
"""Where running proxies can be asked: a socket each in the runtime directory, named by process id."""

from __future__ import annotations

import os
import stat

from enclavekit_core.address import UnixAddress
from enclavekit_core.errors import InputError, describe_cause
from enclavekit_core.fabric import runtime_dir

SUFFIX = ".sock"


def default_socket() -> UnixAddress:
    """Return this process's own; its directory is there then. Raises InputError."""
    top = runtime_dir()
    directory = os.path.join(top, "pf-proxy")
    try:
        for path in (top, directory):
            os.makedirs(path, mode=0o700, exist_ok=True)
        if not _is_private(directory):
            raise InputError("use", f"directory {directory}", "it is not one that only this user can write")
    except OSError as exc:
        raise InputError("make", f"directory {directory}", describe_cause(exc)) from exc
    return UnixAddress(os.path.join(directory, f"{os.getpid()}{SUFFIX}"))


def find_sockets() -> list[UnixAddress]:
    """Return those of this user's proxies, oldest process first; some may be of processes that were killed."""
    directory = os.path.join(runtime_dir(), "pf-proxy")
    try:
        if not _is_private(directory):
            return []
        names = [name for name in os.listdir(directory) if name.removesuffix(SUFFIX).isdigit()]
    except OSError:
        return []
    return [UnixAddress(os.path.join(directory, name)) for name in sorted(names, key=lambda name: (len(name), name))]


def _is_private(directory: str) -> bool:
    info = os.lstat(directory)
    return stat.S_ISDIR(info.st_mode) and info.st_uid == os.geteuid() and not info.st_mode & 0o022
