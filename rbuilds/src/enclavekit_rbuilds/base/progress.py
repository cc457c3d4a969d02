# SPDX-License-Identifier: Apache-2.0
"""What a build tells people while it runs: one line per step on stderr, with its duration."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from enclavekit_rbuilds.base.cache import NotCachedError

MIN_DETAIL_S = 0.1


class Progress:
    """Prints steps and notes; `quiet` keeps only the notes, which may weaken or change what was asked for."""

    def __init__(self, stream: TextIO | None = None, *, quiet: bool = False) -> None:
        self.stream = stream if stream is not None else sys.stderr
        self.quiet = quiet
        self._inside = False

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Say what was done and how long it took; a step that fails says so, its error is the caller's to print."""
        started = time.monotonic()
        try:
            yield
        except NotCachedError:
            raise  # nothing was to be made
        except BaseException:
            self._print(f"failed: {name}")
            raise
        seconds = time.monotonic() - started
        if not self.quiet and not (self._inside and seconds < MIN_DETAIL_S):
            self._print(f"{seconds:6.1f} s  {'  ' if self._inside else ''}{name}")

    @contextmanager
    def details(self) -> Iterator[None]:
        """Show steps meanwhile as parts of one that will be reported with `done`, and only those that took a while."""
        before, self._inside = self._inside, True
        try:
            yield
        finally:
            self._inside = before

    def done(self, text: str, seconds: float) -> None:
        """Say what was done, timed by the caller."""
        if not self.quiet:
            self._print(f"{seconds:6.1f} s  {text}")

    def note(self, text: str) -> None:
        self._print(f"note: {text}")

    def _print(self, line: str) -> None:
        print(f"rbuilds: {line}", file=self.stream, flush=True)
