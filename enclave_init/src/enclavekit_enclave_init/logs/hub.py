# SPDX-License-Identifier: Apache-2.0
"""Where every line goes: redacted once, then into the ring, the unit's file, the console and the live readers.

Nothing here waits: a file that is full loses lines, a reader that is slow loses lines, and both are told how many.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Collection

from enclavekit_enclave_init.logs.config import LogConfig
from enclavekit_enclave_init.logs.console import Console
from enclavekit_enclave_init.logs.line_queue import LineQueue
from enclavekit_enclave_init.logs.output import LogFile
from enclavekit_enclave_init.logs.records import FORMATS, INIT, INIT_NAME, Batch, Line
from enclavekit_enclave_init.logs.redaction import compile_patterns, redact
from enclavekit_enclave_init.logs.ring import LogRing

MAX_READERS = 32  # each may hold line_queue.MAX_QUEUE_BYTES


class Reader:
    """A live reader: which units it follows, and what waits for it."""

    def __init__(self, units: Collection[str] | None, queue: LineQueue) -> None:
        self.units, self.queue = units, queue

    def wake(self) -> None:
        """Called when there is something in the queue; may be set by its owner."""


class LogHub:
    """The one sink of all lines."""

    def __init__(self, console: Console, config: LogConfig | None = None) -> None:
        """Until `configure`, that is before init.toml is read, only PID 1 itself has anything to say."""
        self._console = console
        self._config = config or LogConfig()
        self._pattern: re.Pattern[bytes] | None = compile_patterns(self._config.redact)
        self.ring = LogRing(self._config.ring_bytes)
        self._files: dict[str, LogFile] = {}
        self._directory, self._max_bytes, self._max_files = "", 0, 0
        self._readers: list[Reader] = []
        self._next = 1
        self.lines: dict[str, int] = {}
        """Lines so far, by unit."""

    def configure(self, config: LogConfig) -> None:
        self._config = config
        self._pattern = compile_patterns(config.redact)
        self.ring.resize(config.ring_bytes)

    def keep_files(self, directory: str, max_bytes: int, max_files: int) -> None:
        """Write files into `directory` from now on, beginning with what the ring holds; see `LogFile`."""
        self._directory, self._max_bytes, self._max_files = directory, max_bytes, max_files
        for unit in list(self.lines):
            for line in self.ring.tail((unit,), self.lines[unit]):
                self._file(unit).write(Batch(line.sequence, line.time_s, unit, line.stream, line.text + b"\n"))

    def write(self, unit: str, stream: str, lines: list[bytes], *, on_console: bool = True) -> None:
        """Take lines, without their newlines."""
        if not lines:
            return
        if self._pattern is not None:
            lines = [redact(line, self._pattern) for line in lines]
        batch = Batch(self._next, time.time(), unit, stream, b"\n".join(lines) + b"\n")
        self._next += len(lines)
        self.lines[unit] = self.lines.get(unit, 0) + len(lines)
        self.ring.add(batch)
        if self._directory:
            self._file(unit).write(batch)
        if on_console:
            self._console.write_lines(unit, lines)
        for reader in self._readers:
            if reader.units is None or unit in reader.units:
                reader.queue.offer(batch)
                reader.wake()

    def say(self, text: str) -> None:
        """Take a message of PID 1 itself."""
        self.write(INIT_NAME, INIT, text.encode(errors="backslashreplace").split(b"\n"))

    def follow(self, reader: Reader) -> None:
        """Give `reader` every line from now on. Raises ValueError if there are too many."""
        if len(self._readers) >= MAX_READERS:
            raise ValueError(f"{MAX_READERS} readers follow the logs already")
        self._readers.append(reader)

    def leave(self, reader: Reader) -> None:
        if reader in self._readers:
            self._readers.remove(reader)

    @property
    def lost_lines(self) -> dict[str, int]:
        """Lines that no file has, by unit."""
        return {unit: file.lost_lines for unit, file in self._files.items() if file.lost_lines}

    def tail(self, units: Collection[str] | None, count: int, since_s: float = 0.0) -> list[Line]:
        return self.ring.tail(units, count, since_s)

    def clear(self, unit: str) -> None:
        """Forget what `unit` said, files included. Raises OSError."""
        self.ring.clear(unit)
        if self._directory:
            self._file(unit).clear()

    def close(self) -> None:
        for file in self._files.values():
            file.close()

    def _file(self, unit: str) -> LogFile:
        file = self._files.get(unit)
        if file is None:
            path = os.path.join(self._directory, f"{unit}.log")
            file = LogFile(path, self._max_bytes, self._max_files, FORMATS[self._config.format])
            self._files[unit] = file
        return file
