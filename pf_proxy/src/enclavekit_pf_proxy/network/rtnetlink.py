# SPDX-License-Identifier: Apache-2.0
"""Messages of rtnetlink: links up, routes and routing rules. Pure.

    nlmsghdr    u32 length, u16 type, u16 flags, u32 sequence, u32 port     native order, as all that follows
    body        of the type: ifinfomsg, rtmsg, fib_rule_hdr
    attributes  each: u16 length, u16 type, value, padded to 4 bytes

Source: netlink(7), rtnetlink(7); include/uapi/linux/{netlink,rtnetlink,if_link,fib_rules}.h.
"""

from __future__ import annotations

import ipaddress
import struct

from enclavekit_core.errors import RemoteProtocolError

HEADER = struct.Struct("=IHHII")
IFINFO = struct.Struct("=BxHiII")  # family, type, index, flags, mask of those that change
ROUTE = struct.Struct("=BBBBBBBBI")  # family, bits of destination and source, tos, table, protocol, scope, type, flags
ATTRIBUTE = struct.Struct("=HH")
NUMBER = struct.Struct("=I")
ERROR = struct.Struct("=i")

REQUEST, ACK, EXCLUSIVE, CREATE = 0x1, 0x4, 0x200, 0x400  # NLM_F_*
NLMSG_ERROR = 2
RTM_NEWLINK, RTM_NEWROUTE, RTM_DELROUTE, RTM_NEWRULE, RTM_DELRULE = 16, 24, 25, 32, 33
IFF_UP = 1
RT_TABLE_UNSPEC, RT_TABLE_MAIN = 0, 254
RTN_UNICAST, RTN_LOCAL = 1, 2
RT_SCOPE_UNIVERSE, RT_SCOPE_LINK, RT_SCOPE_HOST = 0, 253, 254
RTA_OIF, RTA_PRIORITY, RTA_PREFSRC, RTA_TABLE = 4, 6, 7, 15
FRA_PRIORITY, FRA_FWMARK, FRA_TABLE, FRA_FWMASK = 6, 10, 15, 16
FR_ACT_TO_TBL = 1
PROTOCOL = 0xE6  # who made a route, as `ip route` shows it: a number that no routing daemon has
METRIC = 0xE600  # behind every route that somebody else makes
RULE_PRIORITY = 0xE6  # of routing rules: before main's 32766, after local's 0
FAMILIES = {4: 2, 6: 10}  # AF_INET, AF_INET6


def encode_link_up(index: int) -> bytes:
    """Return the request to bring an interface up."""
    return _message(RTM_NEWLINK, 0, IFINFO.pack(0, 0, index, IFF_UP, IFF_UP))


def encode_default_route(version: int, index: int, source: str, *, remove: bool = False) -> bytes:
    """Return the request to make, or take away, the default route over an interface: ours, and after all others."""
    scope = RT_SCOPE_LINK if version == 4 else RT_SCOPE_UNIVERSE
    body = ROUTE.pack(FAMILIES[version], 0, 0, 0, RT_TABLE_MAIN, PROTOCOL, scope, RTN_UNICAST, 0)
    body += _attribute(RTA_OIF, NUMBER.pack(index)) + _attribute(RTA_PRIORITY, NUMBER.pack(METRIC))
    body += _attribute(RTA_PREFSRC, ipaddress.ip_address(source).packed)
    return _route(body, remove)


def encode_local_route(version: int, index: int, table: int, *, remove: bool = False) -> bytes:
    """Return the request for a table that delivers every packet to this machine itself, as `table` 0..2**32-1."""
    scope = RT_SCOPE_HOST if version == 4 else RT_SCOPE_UNIVERSE
    body = ROUTE.pack(FAMILIES[version], 0, 0, 0, RT_TABLE_UNSPEC, PROTOCOL, scope, RTN_LOCAL, 0)
    body += _attribute(RTA_OIF, NUMBER.pack(index)) + _attribute(RTA_TABLE, NUMBER.pack(table))
    return _route(body, remove)


def encode_mark_rule(version: int, mark: int, table: int, *, remove: bool = False) -> bytes:
    """Return the request to look marked packets up in `table`."""
    body = ROUTE.pack(FAMILIES[version], 0, 0, 0, RT_TABLE_UNSPEC, 0, 0, FR_ACT_TO_TBL, 0)
    for kind, number in (
        (FRA_FWMARK, mark),
        (FRA_FWMASK, 0xFFFFFFFF),
        (FRA_TABLE, table),
        (FRA_PRIORITY, RULE_PRIORITY),
    ):
        body += _attribute(kind, NUMBER.pack(number))
    return _message(RTM_DELRULE, 0, body) if remove else _message(RTM_NEWRULE, CREATE | EXCLUSIVE, body)


def decode_ack(data: bytes) -> int:
    """Return the errno that answers a request, 0 for success. Raises RemoteProtocolError."""
    if len(data) < HEADER.size + ERROR.size or HEADER.unpack_from(data)[1] != NLMSG_ERROR:
        raise RemoteProtocolError("cannot read netlink answer: it is no acknowledgement")
    code: int = ERROR.unpack_from(data, HEADER.size)[0]
    return -code


def _route(body: bytes, remove: bool) -> bytes:
    return _message(RTM_DELROUTE, 0, body) if remove else _message(RTM_NEWROUTE, CREATE | EXCLUSIVE, body)


def _message(kind: int, flags: int, body: bytes) -> bytes:
    return HEADER.pack(HEADER.size + len(body), kind, REQUEST | ACK | flags, 1, 0) + body


def _attribute(kind: int, value: bytes) -> bytes:
    """Return one attribute; all values here fill their 4 bytes."""
    return ATTRIBUTE.pack(ATTRIBUTE.size + len(value), kind) + value
