# SPDX-License-Identifier: Apache-2.0
"""Mounts the cgroup hierarchies of a kernel that nobody has set up yet."""

from __future__ import annotations

import os

from enclavekit_enclave_init.boot.steps import MS_NODEV, MS_NOEXEC, MS_NOSUID
from enclavekit_enclave_init.runtime import syscalls

CONTROLLERS = ("memory", "pids", "cpu")
FLAGS = MS_NOSUID | MS_NODEV | MS_NOEXEC


def set_up_cgroups(directory: str) -> str:
    """Mount version 2 if it has all of CONTROLLERS, else each of them as version 1; say which. Raises OSError."""
    if " - cgroup" in _read("/proc/self/mountinfo"):
        return "are there already"
    os.makedirs(directory, 0o755, exist_ok=True)
    try:
        syscalls.mount("cgroup2", directory, "cgroup2", FLAGS)
    except OSError:
        pass  # before Linux 4.5, or not compiled in
    else:
        if set(CONTROLLERS) <= set(_read(f"{directory}/cgroup.controllers").split()):
            return "version 2"
        syscalls.unmount(directory)
    syscalls.mount("cgroup", directory, "tmpfs", FLAGS, "mode=0755")
    mounted = []
    for name in CONTROLLERS:
        point = os.path.join(directory, name)
        os.mkdir(point, 0o755)
        try:
            syscalls.mount("cgroup", point, "cgroup", FLAGS, name)
        except OSError:
            os.rmdir(point)
        else:
            mounted.append(name)
    return f"version 1: {', '.join(mounted) or 'no controller'}"


def _read(path: str) -> str:
    with open(path, encoding="utf-8", errors="surrogateescape") as source:
        return source.read()
