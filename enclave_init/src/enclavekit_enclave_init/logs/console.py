# SPDX-License-Identifier: Apache-2.0
"""The console: everybody's lines, never waited for.

Behind it is a serial port, a pipe or a terminal whose reader may be slow, stopped or gone. What it does not take at
once is kept up to MAX_BACKLOG_BYTES; beyond that lines are dropped, and their number is said when there is room again.
"""

from __future__ import annotations

import fcntl
import os
import select
import stat
import time
from collections import deque
from collections.abc import Callable

MAX_BACKLOG_BYTES = 256 * 1024  # a few seconds of a chatty boot
# a unit must not move the cursor, recolour or forge another unit's line: the parent's operator reads this
_PRINTABLE = bytes(byte if (byte >= 32 and byte != 127) or byte == 9 else ord("?") for byte in range(256))


class Console:
    """Writes lines to a descriptor without ever blocking."""

    def __init__(self, fd: int, on_backlog: Callable[[int, bool], None] = lambda fd, waiting: None) -> None:
        """`on_backlog(fd, waiting)` is told when writability starts and ends to matter."""
        self._backlog: deque[bytes] = deque()
        self._backlog_bytes = 0
        self._on_backlog = on_backlog
        self._waiting = False
        self.dropped_lines = 0
        """Lines dropped since the last that was written."""
        self._fd = -1
        self.attach(fd)

    def attach(self, fd: int) -> None:
        """Write to what `fd` refers to from now on."""
        if self._fd > 2:
            self._wait(False)
            os.close(self._fd)
        self._fd = _open_nonblocking(fd)

    def watch(self, on_backlog: Callable[[int, bool], None]) -> None:
        """Change who is told about a backlog."""
        self._on_backlog = on_backlog
        if self._waiting:
            on_backlog(self._fd, True)

    def write_lines(self, name: str, lines: list[bytes]) -> None:
        """Print `lines` as `name: line`."""
        prefix = name.encode() + b": "
        room = MAX_BACKLOG_BYTES - self._backlog_bytes
        for line in lines:
            data = prefix + line.translate(_PRINTABLE) + b"\n"
            if self.dropped_lines or len(data) > room:
                self.dropped_lines += 1
                continue
            room -= len(data)
            self._keep(data)
        if not self._waiting:
            self.flush()

    def flush(self) -> None:
        """Write as much as is taken at once."""
        while self._backlog:
            # joined: one write for many lines; at most a pipe buffer, so that little is copied twice
            chunk = self._backlog.popleft()
            while self._backlog and len(chunk) + len(self._backlog[0]) <= 65536:
                chunk += self._backlog.popleft()
            try:
                written = os.write(self._fd, chunk)
            except BlockingIOError:
                written = 0
            except OSError:
                # the reader is gone for good: nobody to tell
                self._backlog.clear()
                self._backlog_bytes = self.dropped_lines = 0
                break
            self._backlog_bytes -= written
            if written < len(chunk):
                self._backlog.appendleft(chunk[written:])
                self._wait(True)
                return
            if not self._backlog and self.dropped_lines:
                dropped, self.dropped_lines = self.dropped_lines, 0
                self._keep(b"enclave-init: %d console lines dropped: its reader is too slow\n" % dropped)
        self._wait(False)

    def flush_for(self, timeout_s: float) -> None:
        """Write the backlog, for at most `timeout_s`: for the last words."""
        deadline = time.monotonic() + timeout_s
        self.flush()
        while self._backlog and (left := deadline - time.monotonic()) > 0:
            poll = select.poll()
            poll.register(self._fd, select.POLLOUT)
            poll.poll(left * 1000)
            self.flush()

    def _keep(self, data: bytes) -> None:
        self._backlog.append(data)
        self._backlog_bytes += len(data)

    def _wait(self, waiting: bool) -> None:
        if waiting != self._waiting:
            self._waiting = waiting
            self._on_backlog(self._fd, waiting)


def _open_nonblocking(fd: int) -> int:
    """Return a descriptor of what `fd` refers to on which writing does not block; a regular file's never does.

    O_NONBLOCK belongs to the open file, which may be shared with whoever started us, a shell's terminal for example:
    so the file is opened once more where that works. It does not for sockets, nor for the pipe of another user.
    """
    try:
        if stat.S_ISREG(os.fstat(fd).st_mode):
            return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
        return os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        pass
    try:
        copy = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
        kind = os.fstat(copy).st_mode
        if stat.S_ISFIFO(kind) or stat.S_ISSOCK(kind) or stat.S_ISCHR(kind):
            os.set_blocking(copy, False)
        return copy
    except OSError:
        # no console at all: writing fails, which flush takes for a reader that is gone
        return -1
