# SPDX-License-Identifier: Apache-2.0
"""Learn that something was mounted or unmounted: inotify says nothing of the former.

Source: proc(5), /proc/PID/mountinfo: poll(2) reports POLLPRI and POLLERR when the table has changed.
"""

from __future__ import annotations

import os
import select

from enclavekit_fs_monitor.mount_table import Mount, parse_mounts

PATH = "/proc/self/mountinfo"


class MountWatch:
    """`fd` is readable once the mount table has changed; then call `take_changes`."""

    def __init__(self) -> None:
        """Without /proc it never reports anything."""
        # the table itself always counts as readable, so that an epoll of its own has to filter for the change
        self._epoll = select.epoll()
        self.fd = self._epoll.fileno()
        self.mounts: frozenset[Mount] = frozenset()
        try:
            self._table = os.open(PATH, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self._table = -1
            return
        self._epoll.register(self._table, select.EPOLLPRI | select.EPOLLERR)
        self.take_changes()

    def take_changes(self) -> frozenset[Mount]:
        """Return the mounts that came or went since the last call."""
        self._epoll.poll(0)
        with open(PATH, "rb") as source:
            before, self.mounts = self.mounts, parse_mounts(source.read())
        return before ^ self.mounts

    def close(self) -> None:
        self._epoll.close()
        if self._table >= 0:
            os.close(self._table)
