# SPDX-License-Identifier: Apache-2.0
"""What ICMP says at one end of a session, for the other: given as notices on the stream, and taken to the client."""

from __future__ import annotations

import errno
import socket
import time

from enclavekit_core.address import TcpAddress

from enclavekit_pf_proxy.udp.unreachable import CODES, tell_client
from enclavekit_pf_proxy.wire.datagrams import Notice, encode_notice
from enclavekit_pf_proxy.wire.request import Status

NOTICE_S = 0.5  # between two of one session, given or taken: a peer may send any number
ICMP_ERRORS = {
    errno.ECONNREFUSED: Status.REFUSED,
    errno.EHOSTUNREACH: Status.UNREACHABLE,
    errno.ENETUNREACH: Status.UNREACHABLE,
}


class Notices:
    """Of one session."""

    __slots__ = ("_datagrams", "_last", "_serves_client")

    def __init__(self, datagrams: socket.socket, *, serves_client: bool) -> None:
        """`datagrams`: the session's socket; `serves_client`: its peer is the client, and not whom that wants."""
        self._datagrams, self._serves_client = datagrams, serves_client
        self._last = -NOTICE_S

    def encode_error(self, error: OSError) -> bytes:
        """Return the notice about an error of the session's socket; empty if there is none to give."""
        status = ICMP_ERRORS.get(error.errno or 0)
        return encode_notice(status) if status is not None and self._is_due() else b""

    def take(self, notice: Notice) -> None:
        """Tell the client."""
        if not self._serves_client or notice.status not in CODES or not self._is_due():
            return
        try:
            ends = (self._datagrams.getpeername(), self._datagrams.getsockname())
        except OSError:
            return
        client, destination = (TcpAddress(*end[:2]) for end in ends)
        tell_client(client, destination, Status(notice.status))

    def _is_due(self) -> bool:
        now = time.monotonic()
        if now < self._last + NOTICE_S:
            return False
        self._last = now
        return True
