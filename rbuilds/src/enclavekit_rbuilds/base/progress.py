# SPDX-License-Identifier: Apache-2.0
"""What a build tells people while it runs: one line per step on stderr, with its duration."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO


class Progress:
    """Prints steps and notes; `quiet` keeps only the notes, which may weaken or change what was asked for."""

    def __init__(self, stream: TextIO | None = None, *, quiet: bool = False) -> None:
        self.stream = stream if stream is not None else sys.stderr
        self.quiet = quiet

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Say what was done and how long it took; a step that fails says so, its error is the caller's to print."""
        started = time.monotonic()
        try:
            yield
        except BaseException:
            self._print(f"failed: {name}")
            raise
        if not self.quiet:
            self._print(f"{time.monotonic() - started:6.1f} s  {name}")

    def note(self, text: str) -> None:
        self._print(f"note: {text}")

    def _print(self, line: str) -> None:
        print(f"rbuilds: {line}", file=self.stream, flush=True)
