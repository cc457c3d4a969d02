# SPDX-License-Identifier: Apache-2.0
"""NOTIFY_SOCKET: how a service says that it is ready, how it is, and that it still lives. Source: sd_notify(3).

A datagram socket per unit, in /run of the unit's own root. Whoever may open it can write to it, so what counts is who
the kernel says has sent: only processes of the unit are listened to.
"""

from __future__ import annotations

import os
import socket
import struct

from enclavekit_enclave_init.runtime.mounts import open_directory_beneath

MAX_DATAGRAM_BYTES = 4096
MAX_VARIABLES = 32
DIRECTORY = "/run"
UCRED = struct.Struct("=iII")  # pid, uid, gid: unix(7)


def parse_notification(data: bytes) -> dict[str, str]:
    """Return the variables in a datagram, `NAME=value` a line; what is not that is left out. Pure."""
    variables = {}
    for line in data[:MAX_DATAGRAM_BYTES].decode(errors="replace").split("\n")[:MAX_VARIABLES]:
        name, equals, value = line.partition("=")
        if equals and name:
            variables[name] = "".join(char if char.isprintable() else "?" for char in value)
    return variables


class NotifySocket:
    """One unit's socket."""

    def __init__(self, unit: str, root: str) -> None:
        """Make it below `root`. Raises OSError."""
        self.path = f"{DIRECTORY}/notify.{unit}"
        """As the unit sees it."""
        self._name = f"notify.{unit}"
        self._directory = open_directory_beneath(root or "/", DIRECTORY)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            self._unlink()
            # any user may send; chmod afterwards could be led elsewhere by a link
            mask = os.umask(0)
            try:
                self._socket.bind(f"/proc/self/fd/{self._directory}/{self._name}")
            finally:
                os.umask(mask)
        except BaseException:
            self._socket.close()
            os.close(self._directory)
            raise

    def fileno(self) -> int:
        return self._socket.fileno()

    def receive(self) -> tuple[int, bytes] | None:
        """Return the sender's pid and what it sent; None if nothing is there."""
        try:
            data, ancillary, _, _ = self._socket.recvmsg(MAX_DATAGRAM_BYTES, socket.CMSG_SPACE(UCRED.size))
        except OSError:
            return None
        for level, kind, value in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_CREDENTIALS and len(value) == UCRED.size:
                return UCRED.unpack(value)[0], data
        return 0, data

    def _unlink(self) -> None:
        try:
            os.unlink(self._name, dir_fd=self._directory)
        except OSError:
            pass

    def close(self) -> None:
        self._unlink()
        self._socket.close()
        os.close(self._directory)
