# SPDX-License-Identifier: Apache-2.0
"""Connect on behalf of one enclave to what it calls `CID:PORT`: the parent, or an enclave of either kind. Non-blocking.

Whoever accepts must be able to tell who it is, and cannot by the process that connects, which is always one of the
host's. So the connecting socket is bound to an abstract name with the CID in it; see `enclavekit_core.peers`.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from dataclasses import dataclass

from enclavekit_core import fabric
from enclavekit_core.address import CID_HOST, CID_PARENT, MIN_ENCLAVE_CID
from enclavekit_core.peers import sibling_name

MAX_ANSWER_BYTES = 64  # "OK 4294967295\n" is 14


@dataclass(frozen=True, slots=True)
class Dialled:
    """A connected socket."""

    sock: socket.socket
    is_asked: bool
    """A virtual machine has been asked for the port; the answer, a line, has still to be read."""


def dial(source_cid: int, cid: int, port: int) -> Dialled:
    """Connect for enclave `source_cid`. Raises OSError."""
    if cid in (CID_PARENT, CID_HOST):
        top = os.path.join(fabric.runtime_dir(), "fabric")
        # the parent's ports that are this enclave's alone come first
        private = os.path.join(top, str(source_cid), "parent")
        route = fabric.Route(CID_PARENT, fabric.Transport.FABRIC, os.path.join(top, str(CID_PARENT)), private)
    elif cid >= MIN_ENCLAVE_CID and cid != source_cid:
        route = fabric.find_route(cid)
    else:
        raise _refused()
    if route.transport is fabric.Transport.FABRIC:
        return Dialled(_dial_fabric(route, port, source_cid), is_asked=False)
    if route.transport is fabric.Transport.HYBRID:
        sock = _connect(route.path, source_cid)
        try:
            sock.send(b"CONNECT %d\n" % port)  # into an empty buffer: it takes all of it or the other end is gone
        except BaseException:
            sock.close()
            raise
        return Dialled(sock, is_asked=True)
    raise _refused()  # the kernel's AF_VSOCK is not the enclaves' business


def read_answer(sock: socket.socket) -> bool:
    """Say whether a virtual machine that was asked has accepted; call it when `sock` is readable.

    The line is looked at before it is taken, because what follows it belongs to the stream. Its writer is a process of
    ours that writes it whole.
    """
    try:
        seen = sock.recv(MAX_ANSWER_BYTES, socket.MSG_PEEK)
        line, newline, _ = seen.partition(b"\n")
        if not newline or not line.startswith(b"OK "):
            return False
        sock.recv(len(line) + 1)
    except OSError:
        return False
    return True


def _dial_fabric(route: fabric.Route, port: int, source_cid: int) -> socket.socket:
    for path in fabric.socket_candidates(route, port):
        try:
            return _connect(path, source_cid)
        except FileNotFoundError:
            continue
    raise _refused()


def _connect(path: str, source_cid: int) -> socket.socket:
    """Connect to a path of any length, and to a socket only: an enclave may have put a link there."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        handle = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            if not stat.S_ISSOCK(os.fstat(handle).st_mode):
                raise _refused()
            sock.bind(sibling_name(source_cid))
            sock.connect(f"/proc/self/fd/{handle}")  # at once, or EAGAIN when too many wait there: then it is refused
        finally:
            os.close(handle)
    except BaseException:
        sock.close()
        raise
    return sock


def _refused() -> ConnectionRefusedError:
    return ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
