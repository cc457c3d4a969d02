# SPDX-License-Identifier: Apache-2.0
"""Records of /dev/kmsg. Pure.

    <priority>,<sequence>,<microseconds since boot>,<flags>[,...];<text>\n[ KEY=value\n...]

Source: Documentation/ABI/testing/dev-kmsg. One read(2) returns one record. What user space wrote there, whose facility
is not 0, is left out: PID 1 would read its own console lines again where the console is the kernel's.
"""

from __future__ import annotations

import re

DEVICE = "/dev/kmsg"
MAX_RECORD_BYTES = 8192  # CONSOLE_EXT_LOG_MAX in kernel/printk/internal.h; a smaller buffer gets EINVAL
_ESCAPE = re.compile(rb"\\x([0-9a-fA-F]{2})")


def parse_kernel_record(record: bytes) -> list[bytes]:
    """Return the lines of a record; none for one of user space, or for what is no record."""
    head, semicolon, body = record.partition(b";")
    priority = head.partition(b",")[0]
    if not semicolon or not priority.isdigit() or int(priority) >> 3:
        return []
    text = body.partition(b"\n")[0]
    return _ESCAPE.sub(lambda match: bytes((int(match[1], 16),)), text).split(b"\n")
