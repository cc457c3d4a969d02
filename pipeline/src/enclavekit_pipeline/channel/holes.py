# SPDX-License-Identifier: Apache-2.0
"""Where a file has nothing: a terabyte of it costs its owner no disk, and must not cost whoever reads it a terabyte of
zeros. Source: lseek(2), SEEK_DATA.
"""

from __future__ import annotations

import errno
import os


def is_hole(descriptor: int, start: int, stop: int) -> bool:
    """Say whether there is no data from `start` to `stop`; where the file system does not know, there is. Moves the
    file's position. Raises OSError.
    """
    try:
        return os.lseek(descriptor, start, os.SEEK_DATA) >= stop
    except OSError as exc:
        if exc.errno == errno.ENXIO:  # none up to the end
            return True
        if exc.errno == errno.EINVAL:
            return False
        raise
