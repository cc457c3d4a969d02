# SPDX-License-Identifier: Apache-2.0
"""Where the console writes: standard output and error, the terminal as well if asked, and the log in ./eif.

Standard output and error always get everything, so that `rbuilds.sh ... 2>&1 | tee LOG` keeps a complete log.
"""

from __future__ import annotations

import datetime
import os
import sys
from typing import BinaryIO

from enclavekit_core.errors import InputError, describe_cause

from enclavekit_rbuilds.console.plan import IMAGE_DIRECTORY

LOG_PATH = f"{IMAGE_DIRECTORY}/rbuilds.log"
TERMINAL = "/dev/tty"


class Output:
    """`as_json`: standard output is kept for the report, what steps print goes to standard error."""

    def __init__(self, *, as_json: bool = False, terminal: str = TERMINAL) -> None:
        self.as_json = as_json
        self._terminal_path = terminal
        self._terminal: BinaryIO | None = None
        self._has_tried = False
        self._log: BinaryIO | None = None

    def say(self, text: str) -> None:
        """Say something of ours."""
        self.error(f"rbuilds: {text}\n".encode())

    def print(self, text: str) -> None:
        """Print something asked for."""
        self.result(f"{text}\n".encode())

    def result(self, chunk: bytes) -> None:
        """Pass on what a step wrote to its standard output."""
        self._write(sys.stderr.buffer if self.as_json else sys.stdout.buffer, chunk)

    def error(self, chunk: bytes) -> None:
        """Pass on what a step wrote to its standard error."""
        self._write(sys.stderr.buffer, chunk)

    def _write(self, stream: BinaryIO, chunk: bytes) -> None:
        stream.write(chunk)
        stream.flush()
        if self._terminal is not None and not os.isatty(stream.fileno()):
            try:
                self._terminal.write(chunk)
            except OSError:
                self._terminal = None  # it was closed: the other places still get everything
        if self._log is not None:
            self._log.write(chunk)

    def use_terminal(self, wanted: bool) -> None:
        """Open the terminal, or leave it; where there is none, say so once and go on without."""
        if not wanted:
            self._terminal = None
            return
        if self._terminal is not None or self._has_tried:
            return
        self._has_tried = True
        try:
            self._terminal = open(self._terminal_path, "wb", buffering=0)  # noqa: SIM115 - closed in close()
        except OSError as exc:
            self.say(f"note: --tty: no terminal here ({describe_cause(exc)}); output goes where it always goes")

    def open_log(self) -> None:
        """Keep all that follows in the log as well. Raises InputError."""
        if self._log is not None:
            return
        try:
            os.makedirs(IMAGE_DIRECTORY, exist_ok=True)
            # 0600: an app's console may say more than others should read
            descriptor = os.open(LOG_PATH, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        except OSError as exc:
            raise InputError("write log", LOG_PATH, describe_cause(exc)) from exc
        self._log = open(descriptor, "wb", buffering=0)  # noqa: SIM115 - closed in close()

    def log(self, text: str) -> None:
        """Write a line with the time to the log."""
        if self._log is not None:
            now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            self._log.write(f"{now} {text}\n".encode())

    def close(self) -> None:
        for stream in (self._log, self._terminal):
            if stream is not None:
                stream.close()
        self._log = self._terminal = None
