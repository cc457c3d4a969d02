# SPDX-License-Identifier: Apache-2.0
"""The inotify descriptor: add and remove watches, read events without blocking.

The system calls are watchdog's bindings. Its observer above them is not used: it hides the descriptor of a moved
directory and answers a lost event with a log line, where we have to scan.
"""

from __future__ import annotations

import ctypes
import errno
import os

from enclavekit_core.errors import DeviceError

from enclavekit_fs_monitor.inotify_events import Event, decode_events

READ_BYTES = 256 * 1024  # some thousand events at a time


class Inotify:
    """An inotify instance. Raises DeviceError if the kernel has none to give."""

    def __init__(self) -> None:
        from watchdog.observers import inotify_c  # loads libc through ctypes: not on the way to --help

        self._calls = inotify_c
        self.fd: int = inotify_c.inotify_init()
        if self.fd < 0:
            raise DeviceError("open", "inotify", os.strerror(ctypes.get_errno()).lower())
        os.set_blocking(self.fd, False)
        os.set_inheritable(self.fd, False)

    def add(self, handle: int, mask: int) -> int:
        """Watch what `handle` is open on and return the watch descriptor; the same one if it is watched already.

        Raises: OSError; ENOSPC when the limit of watches is reached.
        """
        # by descriptor: the path that led to it may lead elsewhere by now
        path = b"/proc/self/fd/%d" % handle
        wd = int(self._calls.inotify_add_watch(self.fd, path, mask))
        if wd < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        return wd

    def remove(self, wd: int) -> None:
        """Stop a watch; one that is gone already is no error."""
        self._calls.inotify_rm_watch(self.fd, wd)  # type: ignore[arg-type]  # its NewType of int

    def read(self) -> list[Event]:
        """Return what is queued, possibly nothing."""
        try:
            return decode_events(os.read(self.fd, READ_BYTES))
        except OSError as exc:
            if exc.errno in (errno.EAGAIN, errno.EINTR):
                return []
            raise DeviceError("read", "inotify", os.strerror(exc.errno or 0).lower()) from exc

    def close(self) -> None:
        os.close(self.fd)
