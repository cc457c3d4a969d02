# SPDX-License-Identifier: Apache-2.0
"""Who is at the other end of an accepted connection.

The kernel says it on each transport: AF_VSOCK has the CID in the peer's name; on the fabric's Unix sockets
SO_PEERCRED has the pid, which a peer cannot choose. Seen from inside an enclave a process outside its PID namespace
has pid 0: that is the parent, unless the peer's own name says that it connects for a sibling. No enclave can forge
that: it reaches only its own sockets and the parent's. Seen from the host the PID namespace of the pid says which
enclave it is, or the pid itself: a host process that connects for an enclave is in the registry (`carrier_pid`).
"""

from __future__ import annotations

import os
import re
import secrets
import socket
import struct
from dataclasses import dataclass
from typing import Any

from enclavekit_core import fabric
from enclavekit_core.address import CID_PARENT

UCRED = struct.Struct("iII")  # pid, uid, gid: struct ucred, unix(7)
SIBLING_NAME = re.compile(rb"\0enclavekit-vsock:(\d{1,10}):[0-9a-f]+")  # in the abstract namespace, unix(7)


def sibling_name(cid: int) -> bytes:
    """Return a new name for a host's socket that connects on behalf of enclave `cid`; names are used once."""
    return b"\0enclavekit-vsock:%d:%s" % (cid, secrets.token_hex(8).encode())


@dataclass(frozen=True, slots=True)
class Peer:
    """The other end. `cid` is None where it has none (TCP, an ordinary Unix socket)."""

    cid: int | None
    text: str
    """For logs."""
    uid: int | None = None
    """User id on Unix sockets."""


def identify_peer(sock: socket.socket, *, on_fabric: bool, name: Any = None) -> Peer:
    """Return who is connected to the accepted stream `sock`. `name`: what accept(2) said, which spares a call."""
    family = sock.family  # looked up once: as an enum it is made anew each time
    if family == socket.AF_VSOCK:
        cid, port = name or sock.getpeername()
        return Peer(cid, f"vsock://{cid}:{port}")
    if family == socket.AF_UNIX:
        pid, uid, _gid = UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, UCRED.size))
        if not on_fabric:
            return Peer(None, f"unix pid {pid} uid {uid}", uid)
        cid = _cid_of_pid(pid, sock)
        return Peer(cid, f"vsock://{'unknown' if cid is None else cid} (pid {pid})", uid)
    host, port = (name or sock.getpeername())[:2]
    return Peer(None, f"tcp://{host}:{port}")


def _cid_of_pid(pid: int, sock: socket.socket) -> int | None:
    """Return the CID behind a pid as SO_PEERCRED gives it; None if it cannot be told (the process is gone)."""
    own = fabric.local_cid()
    if own != CID_PARENT:
        if pid:
            return own
        name = sock.getpeername()
        match = SIBLING_NAME.fullmatch(name) if isinstance(name, bytes) else None
        return int(match[1]) if match else CID_PARENT
    try:
        space = os.stat(f"/proc/{pid}/ns/pid").st_ino
        is_outside = space == os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return None
    # outside of all enclaves there is the parent, and the processes that carry enclaves' connections
    key, value = ("carrier_pid", pid) if is_outside else ("pid_namespace", space)
    registry = os.path.join(fabric.runtime_dir(), "registry")
    for name in os.listdir(registry):
        record = fabric.read_record(os.path.join(registry, name))
        if record and record.get(key) == value and isinstance(cid := record.get("cid"), int):
            return cid
    return CID_PARENT if is_outside else None
