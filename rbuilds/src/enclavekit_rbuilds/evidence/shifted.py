# SPDX-License-Identifier: Apache-2.0
"""`rbuilds` under libfaketime: `python -m enclavekit_rbuilds.evidence.shifted build ...`.

libfaketime 0.9.10 fails clock_nanosleep(2) with an absolute monotonic time when it is told to leave that clock alone,
and hangs semaphores when it is not. Python's time.sleep() makes that call, and subprocess sleeps so while it waits with
a time limit. Sleeping by select(2) is what libfaketime does right.
"""

from __future__ import annotations

import select
import sys
import time
from typing import SupportsIndex


def sleep(seconds: float | SupportsIndex) -> None:
    """Sleep as time.sleep does."""
    select.select([], [], [], float(seconds))


if __name__ == "__main__":
    time.sleep = sleep
    from enclavekit_rbuilds.cli import main

    sys.exit(main())
