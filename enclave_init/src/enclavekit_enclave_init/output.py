# SPDX-License-Identifier: Apache-2.0
"""What units print: cut into lines, kept in rotated files.

`/log/NAME.log`, each line as `[YYYY-MM-DD HH:MM:SS] text` in UTC, as the Rust enclave-init writes it. Older files are
NAME.log.1, .2 and so on. A file that cannot be written costs lines, which are counted, never the enclave.
"""

from __future__ import annotations

import os
import time

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
    """One unit's log and its older files, together bounded by max_bytes * max_files and one chunk."""

    def __init__(self, path: str, max_bytes: int, max_files: int) -> None:
        self.path = path
        self.lost_lines = 0
        """Lines that could not be written, for example because the disk was full."""
        self._max_bytes = max_bytes
        self._max_files = max_files
        self._fd = -1
        self._size = 0

    def write_lines(self, lines: list[bytes], now_s: float) -> None:
        """Append `lines` under the time `now_s` (Unix time)."""
        stamp = time.strftime("[%Y-%m-%d %H:%M:%S] ", time.gmtime(now_s)).encode()
        data = b"".join([stamp + line + b"\n" for line in lines])
        try:
            if self._fd >= 0 and self._size + len(data) > self._max_bytes and self._size > 0:
                self._rotate()
            if self._fd < 0:
                # a file from an earlier start is continued, and counted
                self._fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
                self._size = os.fstat(self._fd).st_size
            written = os.write(self._fd, data)
            self._size += written
            if written < len(data):
                self.lost_lines += data.count(b"\n", written)
        except OSError:
            self.lost_lines += len(lines)

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
