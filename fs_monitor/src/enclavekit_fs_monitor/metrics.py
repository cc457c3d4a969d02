# SPDX-License-Identifier: Apache-2.0
"""What is counted, and how long files wait for the bus; in Prometheus's text format. Pure.

Source: Prometheus documentation, "Exposition formats", text format 0.0.4.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterable
from dataclasses import dataclass

from enclavekit_core import exposition

PREFIX = "fs_monitor_"


@dataclass(slots=True)
class Counters:
    """Since the start."""

    events: int = 0
    """Events that the kernel reported."""
    overflows: int = 0
    """Times that the kernel's queue was full, and events were lost."""
    scans: int = 0
    """Scans of a whole tree."""
    hashed_files: int = 0
    hashed_bytes: int = 0
    unstable_files: int = 0
    """Attempts on a file that changed meanwhile, or had a writer."""
    unreadable_files: int = 0
    published: int = 0
    """Hashes that the bus has acknowledged."""
    withdrawn: int = 0
    """Hashes that were deleted from it."""
    bus_errors: int = 0
    """Times that writing to the bus failed and was begun again."""


class Lag:
    """How long it takes from the first sign of a change until the bus has acknowledged its hash."""

    def __init__(self) -> None:
        self._since: dict[bytes, float] = {}
        self.last_s = 0.0
        self.sum_s = 0.0
        self.count = 0

    def begin(self, path: bytes, now_s: float) -> None:
        self._since.setdefault(path, now_s)

    def end(self, path: bytes, now_s: float) -> None:
        """The bus has it. A change that came meanwhile begins anew with its own event."""
        since_s = self._since.pop(path, None)
        if since_s is not None:
            self.last_s = now_s - since_s
            self.sum_s += self.last_s
            self.count += 1

    def drop(self, path: bytes) -> None:
        """It has gone, or cannot have a hash for now."""
        self._since.pop(path, None)

    def oldest_s(self, now_s: float) -> float:
        """Return for how long the file has waited that has waited longest; 0 if none waits."""
        first_s = next(iter(self._since.values()), None)  # in the order in which they began
        return 0.0 if first_s is None else now_s - first_s


def render(samples: Iterable[tuple[str, str, str, float, dict[str, str]]]) -> str:
    """Return the exposition of (name, kind, help, value, labels); those of one name follow each other."""
    return exposition.render(
        exposition.Metric(PREFIX + name, kind, text, [(labels, value) for *_, value, labels in group])
        for (name, kind, text), group in itertools.groupby(samples, key=operator.itemgetter(0, 1, 2))
    )
