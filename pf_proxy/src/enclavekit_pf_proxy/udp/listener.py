# SPDX-License-Identifier: Apache-2.0
"""A UDP socket that knows where each datagram was going, and gives each session a connected socket of its own.

The kernel hands a session's further datagrams to that socket, whichever process has it: sessions outlive a reload as
connections do, and what nobody reads yet waits in a buffer of the session's own. Answers come from the address that the
client wrote to, which with TPROXY is one of another machine.
Source: ip(7), IP_RECVORIGDSTADDR and IP_TRANSPARENT; include/uapi/linux/in6.h; socket(7), SO_REUSEPORT and SO_MARK.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from dataclasses import dataclass

from enclavekit_core.address import TcpAddress
from enclavekit_core.errors import TransportError

from enclavekit_pf_proxy.original_destination import (
    SOCKADDR_IN,
    SOCKADDR_IN6,
    SOL_IPV6,
    decode_original,
    make_transparent,
    mark_socket,
    plain_address,
)
from enclavekit_pf_proxy.wire.datagrams import MAX_DATAGRAM_BYTES

IP_ORIGDSTADDR, IPV6_ORIGDSTADDR = 20, 74  # also the options that ask for them
ANCILLARY_BYTES = socket.CMSG_SPACE(SOCKADDR_IN6.size)
SIZES = {(socket.SOL_IP, IP_ORIGDSTADDR): SOCKADDR_IN.size, (SOL_IPV6, IPV6_ORIGDSTADDR): SOCKADDR_IN6.size}


@dataclass(frozen=True, slots=True)
class Arrival:
    """One datagram."""

    data: bytes
    client: TcpAddress
    """Who sent it; addresses and ports are as TCP has them."""
    destination: TcpAddress
    """Where it was going."""


class DatagramListener:
    """In place of `Listener` where datagrams come in."""

    on_fabric = False

    def __init__(self, address: TcpAddress) -> None:
        """Bind to `address`; other sockets of this user may bind to it too, as those of sessions do.

        Raises: TransportError("listen on", address, cause).
        """
        self.address = address
        self.session_options = (False, 0)
        """Of sockets that sessions get: whether they may have other machines' addresses, and their SO_MARK."""
        try:
            family, kind, proto, _, name = socket.getaddrinfo(
                address.host, address.port, type=socket.SOCK_DGRAM, flags=socket.AI_PASSIVE
            )[0]
            if name[1]:
                with socket.socket(family, kind, proto) as alone:
                    alone.bind(name)  # with SO_REUSEPORT, another proxy would share it unseen
            self.socket = self._open(family, name)
        except (OSError, UnicodeError) as exc:
            raise TransportError("listen on", f"udp://{address.host}:{address.port}", exc) from exc

    def _open(self, family: int, name: object) -> socket.socket:
        sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            # a socket for both families gets IPv4 datagrams with IPv4's message
            sock.setsockopt(socket.SOL_IP, IP_ORIGDSTADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(SOL_IPV6, IPV6_ORIGDSTADDR, 1)
            transparent, mark = self.session_options
            if transparent:
                make_transparent(sock)
            if mark:
                mark_socket(sock, mark)
            sock.bind(name)  # type: ignore[arg-type]  # what getaddrinfo says
        except BaseException:
            sock.close()
            raise
        return sock

    @property
    def bound_address(self) -> TcpAddress:
        """The address with the port that the kernel chose, when 0 was asked for."""
        return TcpAddress(self.address.host, self.socket.getsockname()[1])

    def receive(self) -> Arrival | None:
        """Return the next datagram; None for one that does not say where it was going.

        Raises: BlockingIOError if there is none, OSError.
        """
        return _receive(self.socket)

    def open_session(self, client: TcpAddress, destination: TcpAddress) -> tuple[socket.socket, list[Arrival]]:
        """Return a socket for what `client` sends to `destination`, and what else came to it before it was theirs.

        Raises: OSError.
        """
        family = socket.AF_INET6 if ":" in destination.host else socket.AF_INET
        sock = self._open(family, (destination.host, destination.port))
        try:
            sock.connect((client.host, client.port))
            return sock, list(_drain(sock))
        except BaseException:
            sock.close()
            raise

    def leave_file(self) -> None:
        """As of `Listener`: it has none."""

    def close(self) -> None:
        self.socket.close()


def _receive(sock: socket.socket) -> Arrival | None:
    data, ancillary, _, name = sock.recvmsg(MAX_DATAGRAM_BYTES + 1, ANCILLARY_BYTES)
    for level, kind, raw in ancillary:
        size = SIZES.get((level, kind))
        if size is not None and len(raw) >= size:
            return Arrival(data, TcpAddress(plain_address(name[0]), name[1]), decode_original(raw[:size]))
    return None


def _drain(sock: socket.socket) -> Iterator[Arrival]:
    """Yield what came in between bind and connect, from whomever; what follows is from the peer alone."""
    while True:
        try:
            arrival = _receive(sock)
        except BlockingIOError:
            return
        except OSError as exc:
            if exc.errno in (errno.ECONNREFUSED, errno.EHOSTUNREACH):
                continue  # an ICMP message
            raise
        if arrival is not None:
            yield arrival
