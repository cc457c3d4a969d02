# SPDX-License-Identifier: Apache-2.0
"""The process of one guest's socket device: QEMU on one side, the fabric that all enclaves share on the other."""

from __future__ import annotations

import errno
import os
import socket
import stat
import time

from enclavekit_core import fabric
from enclavekit_core.address import CID_HOST, CID_PARENT

from enclavekit_emulator.vsock_device.backend import Backend
from enclavekit_emulator.vsock_device.hybrid_port import HybridPort


def dial_fabric(guest_cid: int, cid: int, port: int) -> socket.socket:
    """Return a connected non-blocking socket for what the guest calls `cid`:`port`. Raises OSError.

    The parent's ports that are this enclave's alone come first; a sibling on the process machine is reached as from
    the host. A sibling that is a virtual machine is not: its answer would have to be waited for.
    """
    if cid in (CID_PARENT, CID_HOST):
        top = os.path.join(fabric.runtime_dir(), "fabric")
        private = os.path.join(top, str(guest_cid), "parent")
        route = fabric.Route(CID_PARENT, fabric.Transport.FABRIC, os.path.join(top, str(CID_PARENT)), private)
    else:
        route = fabric.find_route(cid)
        if route.transport is not fabric.Transport.FABRIC:
            raise ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
    for path in fabric.socket_candidates(route, port):
        try:
            handle = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        try:
            if not stat.S_ISSOCK(os.fstat(handle).st_mode):
                break
            return _connect(f"/proc/self/fd/{handle}")
        finally:
            os.close(handle)
    raise ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))


def _connect(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        sock.connect(path)  # at once, or EAGAIN when too many wait there: then it is refused
    except BaseException:
        sock.close()
        raise
    return sock


def serve(vhost: socket.socket, hybrid: socket.socket, guest_cid: int) -> None:
    """Wait for QEMU on the listener `vhost`, then serve its device until QEMU ends; the host connects to `hybrid`."""
    channel, _ = vhost.accept()
    vhost.close()
    backend = Backend(channel, guest_cid, lambda cid, port: dial_fabric(guest_cid, cid, port))
    ports = HybridPort(backend, hybrid)
    while not backend.is_over:
        deadline = ports.next_deadline
        backend.run_once(-1 if deadline is None else max(deadline - time.monotonic(), 0))
        ports.expire()
    backend.close()
