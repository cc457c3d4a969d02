# SPDX-License-Identifier: Apache-2.0
"""What is done to every socket that is relayed: options at its beginning, its end, who is at its ends."""

from __future__ import annotations

import socket
import struct

from enclavekit_core.address import TcpAddress

from enclavekit_pf_proxy.announcement import NO_ENDS, Ends

RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # struct linger: on, 0 seconds; socket(7)
IP = (socket.AF_INET, socket.AF_INET6)
UNPACED = b"reno"  # congestion control that each kernel has and allows to everybody, tcp(7)


def close_socket(sock: socket.socket, *, reset: bool) -> None:
    """Close a socket; with `reset` a TCP peer sees an error instead of an end."""
    if reset and sock.family in IP:
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        except OSError:
            pass  # not connected any more: nobody is left to tell
    sock.close()


def prepare_socket(sock: socket.socket, keepalive_s: int) -> None:
    """Make a socket ready to be relayed: non-blocking, and on TCP no delay for small writes, keep-alive, urgent data
    in its place in the stream.
    """
    if sock.gettimeout() != 0.0:
        sock.setblocking(False)
    if sock.family in IP:
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, keepalive_s)
        except OSError:
            pass  # reset meanwhile: the relay notices at once


def spare_pacing(sock: socket.socket) -> None:
    """Have a TCP socket of the loopback interface send when it can.

    Nothing is congested there, and BBR, which many hosts have as their default, would time each segment: it halves
    what goes through. Call it before the socket connects, or while it listens: what is accepted inherits it.
    """
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, UNPACED)
    except OSError:
        pass  # slower, not wrong


def read_ends(sock: socket.socket) -> Ends:
    """Return who is at the ends of an accepted connection."""
    if sock.family not in IP:
        return NO_ENDS
    try:
        return Ends(_address_of(sock.getpeername()), _address_of(sock.getsockname()))
    except OSError:
        return NO_ENDS  # it has left


def _address_of(name: tuple[str, int]) -> TcpAddress:
    return TcpAddress(name[0].partition("%")[0], name[1])  # a scope is this machine's business
