# SPDX-License-Identifier: Apache-2.0
"""The process of one guest's socket device: QEMU on one side, the fabric that all enclaves share on the other."""

from __future__ import annotations

import resource
import socket
import time

from enclavekit_emulator.vsock_device.backend import Backend
from enclavekit_emulator.vsock_device.device import MAX_CONNECTIONS
from enclavekit_emulator.vsock_device.fabric_dial import MAX_WAITING as MAX_DIALS
from enclavekit_emulator.vsock_device.fabric_dial import FabricDial
from enclavekit_emulator.vsock_device.hybrid_port import MAX_WAITING, HybridPort
from enclavekit_emulator.vsock_device.vhost_user import ProtocolError

OTHER_DESCRIPTORS = 64  # standard streams, epoll, QEMU's channel, memory and eventfds, a path that is being opened


def claim_descriptors() -> int:
    """Raise the limit of open files as far as it is needed and may be; return how many connections fit into it."""
    others = MAX_WAITING + MAX_DIALS + OTHER_DESCRIPTORS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_CONNECTIONS + others
    limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < limit:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
        soft = limit
    available = wanted if soft == resource.RLIM_INFINITY else min(soft, wanted)
    return max(available - others, 1)


def serve(channel: socket.socket, hybrid: socket.socket, guest_cid: int) -> None:
    """Serve the device of the QEMU at the other end of `channel` until it ends; the host connects to `hybrid`.

    Raises: ProtocolError if QEMU says what cannot be served.
    """
    dial = FabricDial(guest_cid)
    backend = dial.backend = Backend(channel, guest_cid, dial, claim_descriptors())
    ports = HybridPort(backend, hybrid)
    while not backend.is_over:
        deadlines = [deadline for deadline in (ports.next_deadline, dial.next_deadline) if deadline is not None]
        backend.run_once(max(min(deadlines) - time.monotonic(), 0) if deadlines else -1)
        ports.expire()
        dial.expire()
    backend.close()
    if backend.failure is not None:
        raise ProtocolError(f"cannot go on with QEMU: {backend.failure}")
