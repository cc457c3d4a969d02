# SPDX-License-Identifier: Apache-2.0
"""Tells a client that its datagrams do not arrive, as the machine that they were meant for or a router would: by ICMP.

Its socket, if it is connected, then says ECONNREFUSED at the next call, so that a program need not wait for an answer
until its patience ends: HTTP/3 clients go on with TCP at once. It takes CAP_NET_RAW, which TPROXY takes too; without,
nobody is told.
Source: RFC 792 and RFC 1122 section 3.2.2.1, RFC 4443 section 3.1; net/ipv4/icmp.c, icmp_unreach().
"""

from __future__ import annotations

import ipaddress
import socket
import struct

from enclavekit_core.address import TcpAddress

from enclavekit_pf_proxy.wire.request import Status

ICMP, UDP_HEADER = struct.Struct(">BBHI"), struct.Struct(">HHHH")
IPV4, IPV6 = struct.Struct(">BBHHHBBH4s4s"), struct.Struct(">IHBB16s16s")
HOPS = 64
# (type, code) for IPv4 and IPv6
CODES = {Status.REFUSED: ((3, 3), (1, 4)), Status.UNREACHABLE: ((3, 1), (1, 3))}  # port; host


def encode_unreachable(client: TcpAddress, destination: TcpAddress, status: Status) -> bytes:
    """Return the ICMP message about an empty datagram from `client` to `destination`. IPv6's checksum is the kernel's.

    Raises: KeyError for a status that has none, ValueError for what are no two addresses of one kind.
    """
    source, target = ipaddress.ip_address(client.host), ipaddress.ip_address(destination.host)
    if source.version != target.version:
        raise ValueError("addresses of two kinds")
    datagram = UDP_HEADER.pack(client.port, destination.port, UDP_HEADER.size, 0)
    for_ipv4, for_ipv6 = CODES[status]
    if source.version == 6:
        quoted = IPV6.pack(6 << 28, len(datagram), socket.IPPROTO_UDP, HOPS, source.packed, target.packed)
        return ICMP.pack(*for_ipv6, 0, 0) + quoted + datagram
    total = IPV4.size + len(datagram)
    quoted = IPV4.pack(0x45, 0, total, 0, 0, HOPS, socket.IPPROTO_UDP, 0, source.packed, target.packed)
    rest = quoted + datagram
    return ICMP.pack(*for_ipv4, _checksum(ICMP.pack(*for_ipv4, 0, 0) + rest), 0) + rest


def _checksum(data: bytes) -> int:
    total: int = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


def tell_client(client: TcpAddress, destination: TcpAddress, status: Status) -> bool:
    """Send it; return whether that was possible."""
    is_ipv6 = ":" in client.host
    family, protocol = (socket.AF_INET6, socket.IPPROTO_ICMPV6) if is_ipv6 else (socket.AF_INET, socket.IPPROTO_ICMP)
    try:
        message = encode_unreachable(client, destination, status)
        with socket.socket(family, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, protocol) as sock:
            sock.sendto(message, (client.host, 0))
    except (OSError, ValueError, KeyError):
        return False
    return True
