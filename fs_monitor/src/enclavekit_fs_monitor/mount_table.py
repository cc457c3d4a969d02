# SPDX-License-Identifier: Apache-2.0
"""The table of mounts: which matter to a tree, and which hold no files that anybody stored. Pure.

Source: proc(5), /proc/PID/mountinfo: fields by blanks, the fifth is the mount point with octal escapes; after a lone
"-" come type and source.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

KERNEL_TYPES = frozenset(
    {"autofs", "binder", "binfmt_misc", "bpf", "cgroup", "cgroup2", "configfs", "debugfs", "devpts", "devtmpfs"}
    | {"efivarfs", "fusectl", "hugetlbfs", "mqueue", "nsfs", "proc", "pstore", "rpc_pipefs", "securityfs", "selinuxfs"}
    | {"sysfs", "tracefs"}
)
_ESCAPE = re.compile(rb"\\([0-7]{3})")
_MOUNT_POINT = 4


@dataclass(frozen=True, slots=True)
class Mount:
    point: bytes
    what: bytes
    """Type, device and the directory of it that is mounted, and the number of this mount."""

    @property
    def is_of_kernel(self) -> bool:
        return self.what.partition(b" ")[0].decode("ascii", "replace") in KERNEL_TYPES


def parse_mounts(mountinfo: bytes) -> frozenset[Mount]:
    """Return the mounts in a table; lines it cannot read are left out."""
    found = set()
    for line in mountinfo.splitlines():
        fields = line.split(b" ")
        try:
            kind = fields[fields.index(b"-", _MOUNT_POINT) + 1]
        except (ValueError, IndexError):
            continue
        point = _ESCAPE.sub(lambda octal: bytes([int(octal[1], 8) & 0xFF]), fields[_MOUNT_POINT])
        found.add(Mount(point, b" ".join([kind, *fields[:_MOUNT_POINT]])))  # options are no matter of ours
    return frozenset(found)


def kernel_mounts(mounts: Iterable[Mount]) -> frozenset[bytes]:
    """Return the mount points of file systems whose content the kernel makes up."""
    return frozenset(mount.point for mount in mounts if mount.is_of_kernel)


def concerns(mount: Mount, root: bytes) -> bool:
    """Return whether a mount that comes or goes changes what is at `root` or below."""
    inner, outer = root.rstrip(b"/") + b"/", mount.point.rstrip(b"/") + b"/"
    return inner.startswith(outer) or outer.startswith(inner)
