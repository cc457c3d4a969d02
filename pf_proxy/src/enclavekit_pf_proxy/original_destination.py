# SPDX-License-Identifier: Apache-2.0
"""Where a connection went before nftables or iptables brought it here.

REDIRECT and DNAT leave it in conntrack (SO_ORIGINAL_DST, netfilter_ipv4.h and netfilter_ipv6/ip6_tables.h); TPROXY
leaves the packet as it was, so that the accepted socket's own name says it.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
import struct

from enclavekit_core.address import TcpAddress

SO_ORIGINAL_DST = 80  # IP6T_SO_ORIGINAL_DST is the same number at SOL_IPV6
SOL_IPV6 = 41
SOCKADDR_IN = struct.Struct(">2xH4s8x")  # family in native order, which the level says already; port; address
SOCKADDR_IN6 = struct.Struct(">2xH4x16s4x")
IP_TRANSPARENT, IPV6_TRANSPARENT = 19, 75  # one flag of the socket; ip(7), include/uapi/linux/in6.h
NO_ENTRY = {errno.ENOENT, errno.ENOPROTOOPT, errno.EOPNOTSUPP}  # no conntrack entry, or no conntrack at all


def decode_original(raw: bytes) -> TcpAddress:
    """Decode a struct sockaddr_in (16 bytes) or sockaddr_in6 (28 bytes)."""
    port, packed = (SOCKADDR_IN if len(raw) == SOCKADDR_IN.size else SOCKADDR_IN6).unpack(raw)
    return TcpAddress(plain_address(str(ipaddress.ip_address(packed))), port)


def plain_address(text: str) -> str:
    """Return an IPv4 address that is written as IPv6 (::ffff:1.2.3.4) as the IPv4 address that it is."""
    address = ipaddress.ip_address(text.partition("%")[0])
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)


def read_original(sock: socket.socket) -> TcpAddress:
    """Return where the accepted TCP connection `sock` was going: its own address unless it was diverted.

    Raises: OSError if the connection is gone.
    """
    name = sock.getsockname()
    own = TcpAddress(plain_address(name[0]), name[1])
    if sock.type != socket.SOCK_STREAM:
        return own  # conntrack tells of streams only; a session's socket is bound to where its datagrams go
    level, layout = (SOL_IPV6, SOCKADDR_IN6) if ":" in own.host else (socket.SOL_IP, SOCKADDR_IN)
    try:
        return decode_original(sock.getsockopt(level, SO_ORIGINAL_DST, layout.size))
    except OSError as exc:
        if exc.errno in NO_ENTRY:
            return own
        raise


def make_transparent(sock: socket.socket) -> None:
    """Let a socket take what TPROXY brings, and have addresses that are not this machine's.

    Raises: PermissionError without CAP_NET_ADMIN or CAP_NET_RAW.
    """
    if sock.family == socket.AF_INET6:
        sock.setsockopt(SOL_IPV6, IPV6_TRANSPARENT, 1)
    else:
        sock.setsockopt(socket.SOL_IP, IP_TRANSPARENT, 1)


def mark_socket(sock: socket.socket, mark: int) -> None:
    """Mark all that a socket sends, so that rules know it. Raises PermissionError without CAP_NET_ADMIN."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)


def is_own_address(host: str) -> bool:
    """Say whether an address is one of this machine's, on which an ordinary socket can be."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.bind((host, 0))
        except OSError:
            return False
    return True
