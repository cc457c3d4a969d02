# SPDX-License-Identifier: Apache-2.0
"""Which mounts hold no files that anybody stored: the kernel's own file systems. Pure.

Source: proc(5), /proc/PID/mountinfo: fields by blanks, the fifth is the mount point with octal escapes; after a lone
"-" come type and source.
"""

from __future__ import annotations

import re

KERNEL_TYPES = frozenset(
    {"autofs", "binder", "binfmt_misc", "bpf", "cgroup", "cgroup2", "configfs", "debugfs", "devpts", "devtmpfs"}
    | {"efivarfs", "fusectl", "hugetlbfs", "mqueue", "nsfs", "proc", "pstore", "rpc_pipefs", "securityfs", "selinuxfs"}
    | {"sysfs", "tracefs"}
)
_ESCAPE = re.compile(rb"\\([0-7]{3})")
_MOUNT_POINT = 4


def kernel_mounts(mountinfo: bytes) -> frozenset[bytes]:
    """Return the mount points of file systems whose content the kernel makes up; lines it cannot read are left out."""
    found = set()
    for line in mountinfo.splitlines():
        fields = line.split(b" ")
        try:
            kind = fields[fields.index(b"-", _MOUNT_POINT) + 1].decode("ascii", "replace")
        except (ValueError, IndexError):
            continue
        if kind in KERNEL_TYPES:
            found.add(_ESCAPE.sub(lambda octal: bytes([int(octal[1], 8) & 0xFF]), fields[_MOUNT_POINT]))
    return frozenset(found)
