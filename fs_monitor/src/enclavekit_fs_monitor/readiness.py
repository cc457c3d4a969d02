# SPDX-License-Identifier: Apache-2.0
"""Tell a supervisor that understands it that we are ready: one datagram, as sd_notify(3) describes."""

from __future__ import annotations

import os
import socket

VARIABLE = "NOTIFY_SOCKET"


def notify(state: str) -> None:
    """Send e.g. `READY=1`; does nothing without a supervisor that asked for it, or when it is not there any more."""
    path = os.environ.get(VARIABLE, "")
    if not path.startswith(("/", "@")):
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        try:
            sock.sendto(state.encode("ascii"), "\0" + path[1:] if path.startswith("@") else path)
        except OSError:
            return
