# SPDX-License-Identifier: Apache-2.0
"""PID 1's own messages: on the console at once, in /log/enclave-init.log as soon as that can be written."""

from __future__ import annotations

import time
from collections import deque

from enclavekit_enclave_init.console import Console
from enclavekit_enclave_init.output import MAX_LINE_BYTES, LogFile

NAME = "enclave-init"
MAX_EARLY_LINES = 500  # a boot says about twenty


class Journal:
    """Callable as the log function of everything else."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._file: LogFile | None = None
        self._early: deque[bytes] = deque(maxlen=MAX_EARLY_LINES)

    def __call__(self, text: str) -> None:
        lines = [line[:MAX_LINE_BYTES] for line in text.encode(errors="backslashreplace").split(b"\n")]
        self._console.write_lines(NAME, lines)
        if self._file is None:
            self._early += lines
        else:
            self._file.write_lines(lines, time.time())

    def keep_in(self, file: LogFile) -> None:
        """Write to `file` from now on, beginning with what was said before."""
        self._file = file
        if self._early:
            file.write_lines(list(self._early), time.time())
            self._early.clear()
