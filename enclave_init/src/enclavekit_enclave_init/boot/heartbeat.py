# SPDX-License-Identifier: Apache-2.0
"""The one byte that tells the parent that the enclave has booted.

Source: nitro-cli and AWS's init: connect to vsock 3:9000, send 0xB7, read 0xB7 back, close.
"""

from __future__ import annotations

from enclavekit_core.address import VsockAddress
from enclavekit_core.errors import RemoteProtocolError, TransportError
from enclavekit_core.streams import connect

HEARTBEAT = b"\xb7"


def send_heartbeat(cid: int, port: int, timeout_s: float) -> None:
    """Exchange the heartbeat. Raises TransportError, or RemoteProtocolError if something else comes back."""
    address = VsockAddress(cid, port)
    with connect(address, timeout_s) as sock:
        sock.settimeout(timeout_s)
        try:
            sock.sendall(HEARTBEAT)
            answer = sock.recv(1)
        except OSError as exc:
            raise TransportError("exchange the heartbeat with", address, exc) from exc
    if answer != HEARTBEAT:
        got = f"0x{answer.hex()}" if answer else "the end of the stream"
        raise RemoteProtocolError(f"cannot accept the heartbeat of {address}: it answered {got}, not 0xb7")
