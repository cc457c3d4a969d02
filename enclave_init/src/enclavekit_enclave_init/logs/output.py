# SPDX-License-Identifier: Apache-2.0
"""What units print: cut into lines, kept in rotated files.

`/log/NAME.log`, older files NAME.log.1, .2 and so on, in one of the two forms of `logs.records`. A file that cannot be
written costs lines, which are counted and told in the file as soon as it can be written again, never the enclave.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from enclavekit_enclave_init.logs.records import INIT, INIT_NAME, Batch, format_text

MAX_LINE_BYTES = 8192  # a longer line is cut in pieces: one without an end must not fill PID 1


class LineSplitter:
    """Bytes in, lines out. Pure."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """Return the complete lines, without their newlines, in pieces of at most MAX_LINE_BYTES."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) >= MAX_LINE_BYTES:
            lines.append(self._rest)
            self._rest = b""
        if all(len(line) <= MAX_LINE_BYTES for line in lines):
            return lines
        return [line[at : at + MAX_LINE_BYTES] for line in lines for at in range(0, max(len(line), 1), MAX_LINE_BYTES)]

    def feed_eof(self) -> list[bytes]:
        """Return the last line if it had no newline."""
        rest, self._rest = self._rest, b""
        return [rest] if rest else []


class LogFile:
    """One unit's log and its older files, together bounded by max_bytes * max_files and one batch."""

    def __init__(
        self, path: str, max_bytes: int, max_files: int, encode: Callable[[Batch], bytes] = format_text
    ) -> None:
        self.path = path
        self.lost_lines = 0
        """Lines that could not be written, for example because the disk was full."""
        self._told = 0
        self._max_bytes = max_bytes
        self._max_files = max_files
        self._encode = encode
        self._fd = -1
        self._size = 0

    def write(self, batch: Batch) -> None:
        """Append the lines of `batch`."""
        data = self._encode(batch)
        if self.lost_lines > self._told:
            missing = b"%d lines before this one could not be written\n" % (self.lost_lines - self._told)
            data = self._encode(Batch(batch.sequence, batch.time_s, INIT_NAME, INIT, missing)) + data
        try:
            if self._fd >= 0 and self._size + len(data) > self._max_bytes and self._size > 0:
                self._rotate()
            if self._fd < 0:
                # a file from an earlier start is continued, and counted
                self._fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
                self._size = os.fstat(self._fd).st_size
            written = os.write(self._fd, data)
        except OSError:
            self.lost_lines += batch.count
            return
        if written == len(data):
            self._size += written
            self._told = self.lost_lines
            return
        self.lost_lines += min(batch.count, data.count(b"\n", written))
        self._cut_back(written)

    def _cut_back(self, written: int) -> None:
        """Take the part of a line away that a full disk let through: what comes next begins a line of its own."""
        try:
            size = os.fstat(self._fd).st_size
            with open(self.path, "rb") as source:
                source.seek(size - written)
                whole = source.read(written).rfind(b"\n") + 1
            os.ftruncate(self._fd, size - written + whole)
            self._size += whole
        except OSError:
            self._size += written

    def clear(self) -> None:
        """Remove this file and the older ones. Raises OSError."""
        self.close()
        for number in range(self._max_files):
            try:
                os.unlink(f"{self.path}.{number}" if number else self.path)
            except FileNotFoundError:
                pass
        self._size = 0

    def _rotate(self) -> None:
        self.close()
        for number in range(self._max_files - 1, 0, -1):
            older = f"{self.path}.{number}"
            newer = f"{self.path}.{number - 1}" if number > 1 else self.path
            try:
                os.replace(newer, older)
            except FileNotFoundError:
                pass
        if self._max_files == 1:
            os.unlink(self.path)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
