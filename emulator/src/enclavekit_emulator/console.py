# SPDX-License-Identifier: Apache-2.0
"""The console of an emulated enclave: the last part of what PID 1 and its children wrote to /dev/console. Pure.

The enclave writes what it likes, so this is bytes, bounded, and made harmless before it reaches a terminal as part of
an error message (`last_lines`). `nitro-emu console` hands out the raw stream, as nitro-cli does.
"""

from __future__ import annotations

from enclavekit_core.exit_report import printable

MAX_CONSOLE_BYTES = 1024 * 1024  # what a new reader is shown first; a boot writes a few KiB


class ConsoleBuffer:
    """The last MAX_CONSOLE_BYTES written."""

    def __init__(self, limit_bytes: int = MAX_CONSOLE_BYTES) -> None:
        self._limit = limit_bytes
        self._data = bytearray()

    def append(self, chunk: bytes) -> None:
        self._data += chunk
        if len(self._data) > 2 * self._limit:  # trim rarely: each trim moves the whole buffer
            del self._data[: -self._limit]

    def read(self) -> bytes:
        """Return the buffered bytes, oldest first."""
        return bytes(self._data[-self._limit :])

    def last_lines(self, count: int) -> tuple[str, ...]:
        """Return the last non-empty lines as printable text."""
        lines = [printable(line) for line in self.read().decode("utf-8", "replace").splitlines() if line.strip()]
        return tuple(lines[-count:])
