# SPDX-License-Identifier: Apache-2.0
"""IP addresses as both ends of a policy must read them: whatever stands for an IPv4 address is that address. Pure."""

from __future__ import annotations

import ipaddress

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IpNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # RFC 6052: the last 4 bytes are an IPv4 address
SIX_TO_FOUR = ipaddress.IPv6Network("2002::/16")  # RFC 3056: bytes 2..5 are
COMPATIBLE = ipaddress.IPv6Network("::/96")  # RFC 4291, deprecated: the last 4 bytes are
TRANSLATED = ipaddress.IPv6Network("::ffff:0:0:0/96")  # RFC 2765, deprecated: the last 4 bytes are

GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")  # RFC 4291: all that is allocated; site-local addresses (RFC
# 3879) and the translated ones that only their operator understands (RFC 8215) are not
DOCUMENTATION = ipaddress.IPv6Network("3fff::/20")  # RFC 9637: younger than Python's list


def unwrap(address: IpAddress) -> IpAddress:
    """Return the IPv4 address inside an IPv6 address that stands for one, else the address."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    packed = address.packed
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address in NAT64 or address in TRANSLATED:
        return ipaddress.IPv4Address(packed[12:])
    if address in COMPATIBLE and packed[12:] not in (b"\0\0\0\0", b"\0\0\0\1"):
        return ipaddress.IPv4Address(packed[12:])
    if address in SIX_TO_FOUR:
        return ipaddress.IPv4Address(packed[2:6])
    return address


def is_private(address: IpAddress) -> bool:
    """Say whether an address, unwrapped, is not one of the public Internet's single machines."""
    if isinstance(address, ipaddress.IPv6Address) and (address not in GLOBAL_UNICAST or address in DOCUMENTATION):
        return True
    return not address.is_global or address.is_multicast
