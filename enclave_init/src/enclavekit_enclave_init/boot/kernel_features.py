# SPDX-License-Identifier: Apache-2.0
"""What an old or small kernel lacks, and what that costs: named at boot, so that nobody has to find it out later.

AWS's stock kernel for enclaves is a 4.14. Everything the framework does works there or has a fallback; where the
fallback does less, or where there can be none, this table says so.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import socket
from collections.abc import Callable
from dataclasses import dataclass

from enclavekit_core import landlock, seccomp

from enclavekit_enclave_init.runtime.syscalls import filters_calls
from enclavekit_enclave_init.units.protections import Abilities

SYS_OPENAT2 = 437  # on every architecture; Linux 5.6


@dataclass(frozen=True, slots=True)
class Feature:
    """One thing that the services use."""

    name: str
    is_there: Callable[[], bool]
    cost: str
    """What does not work without it, to stand after `no NAME: `."""
    is_emulated: bool = False
    """On a process machine somebody else stands in for the kernel."""


def _has_openat2() -> bool:
    libc = ctypes.CDLL(None, use_errno=True)
    # a size of 0 is EINVAL for a kernel that knows the call
    return libc.syscall(ctypes.c_long(SYS_OPENAT2), -1, None, None, ctypes.c_size_t(0)) >= 0 or (
        ctypes.get_errno() != errno.ENOSYS
    )


def _has_vsock() -> bool:
    try:
        socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM).close()
    except OSError:
        return False
    return True


def find_abilities(controllers: frozenset[str], *, may_unshare: bool) -> Abilities:
    """Return what units may ask to be protected by. `may_unshare`: namespaces may be made."""
    return Abilities(
        controllers=controllers,
        landlock=landlock.version() > 0,
        seccomp=platform.machine() in seccomp.ARCHITECTURES and filters_calls(),
        network_namespaces=may_unshare and os.path.exists("/proc/self/ns/net"),
        mount_namespaces=may_unshare and os.path.exists("/proc/self/ns/mnt"),
    )


FEATURES = (
    Feature("AF_VSOCK", _has_vsock, "nothing reaches the enclave, and it reaches nothing", is_emulated=True),
    Feature(
        "/dev/nsm",
        lambda: os.path.exists("/dev/nsm"),
        "nothing can be attested: pipeline admits nobody, ra-web-srv has no documents, no runtime values are taken",
        is_emulated=True,
    ),
    Feature(
        "inotify",
        lambda: os.path.exists("/proc/sys/fs/inotify"),
        "fs-monitor cannot start, files are hashed on demand only",
    ),
    Feature(
        "openat2 (Linux 5.6)",
        _has_openat2,
        "pipeline refuses paths that have `..` or lead through a symbolic link in the app's root",
    ),
    Feature(
        "Landlock (Linux 5.13)",
        lambda: landlock.version() > 0,
        "units with LandlockRead or LandlockWrite do not start",
    ),
    Feature("seccomp filters", filters_calls, "units with SeccompProfile do not start"),
    Feature(
        "cgroups",
        lambda: os.path.exists("/proc/self/cgroup"),
        "units with MemoryMax, CPUQuota or TasksMax do not start, and what leaves a unit's session outlives it",
    ),
)


NO_VSOCK = FEATURES[0].cost
MODULE_COSTS = {
    "virtio_mmio": f"no device of the machine is found: {NO_VSOCK}",
    "vsock": NO_VSOCK,
    "vmw_vsock_virtio_transport_common": NO_VSOCK,
    "vmw_vsock_virtio_transport": NO_VSOCK,
    "nsm": FEATURES[1].cost,
    "fuse": "the emulator's virtual machines have no /dev/nsm",
    "cuse": "the emulator's virtual machines have no /dev/nsm",
}


def cost_of_module(path: str) -> str:
    """Return what does not work without the kernel module in this file; empty if nobody here knows."""
    return MODULE_COSTS.get(os.path.basename(path).removesuffix(".ko").replace("-", "_"), "")


def describe_missing(features: tuple[Feature, ...] = FEATURES, *, own_kernel: bool = True) -> list[str]:
    """Return a line per feature that this kernel lacks; `own_kernel`: it is nobody else's."""
    asked = [feature for feature in features if own_kernel or not feature.is_emulated]
    return [f"this kernel has no {feature.name}: {feature.cost}" for feature in asked if not feature.is_there()]
