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
    level, layout = (SOL_IPV6, SOCKADDR_IN6) if ":" in own.host else (socket.SOL_IP, SOCKADDR_IN)
    try:
        return decode_original(sock.getsockopt(level, SO_ORIGINAL_DST, layout.size))
    except OSError as exc:
        if exc.errno in NO_ENTRY:
            return own
        raise
