# SPDX-License-Identifier: Apache-2.0
"""Routes of ours put into the kernel and taken out again, by rtnetlink.

Each is known by numbers that are nobody else's, so that what a killed proxy left is found again.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Collection, Iterable

from enclavekit_core.errors import TransportError

from enclavekit_pf_proxy.network.rtnetlink import (
    decode_ack,
    encode_default_route,
    encode_link_up,
    encode_local_route,
    encode_mark_rule,
)

LOOPBACK = "lo"
SOURCES = {4: "127.0.0.1", 6: "::1"}  # of what leaves by a default route over an interface that has no other address
THERE_ALREADY, GONE_ALREADY = {errno.EEXIST}, {errno.ESRCH, errno.ENOENT, errno.ENODEV}


def ip_versions() -> tuple[int, ...]:
    """Return the kinds of IP that this kernel knows, and that are switched on."""
    if not os.path.exists("/proc/self/net/if_inet6"):
        return (4,)
    try:
        with open("/proc/sys/net/ipv6/conf/all/disable_ipv6", encoding="ascii") as setting:
            return (4,) if setting.read().strip() == "1" else (4, 6)
    except FileNotFoundError:  # an enclave need not have /proc/sys
        return (4, 6)


def set_up_loopback() -> None:
    """Bring the loopback interface up. Raises TransportError."""
    _ask("bring up interface", LOOPBACK, [encode_link_up(_index(LOOPBACK))])


def set_default_routes(interface: str, versions: Collection[int]) -> None:
    """Give every destination of these kinds of IP, and of no other, a route of ours, so that programs may send there
    and rules divert it. Raises TransportError.
    """
    index = _index(interface)
    messages = [encode_link_up(index)]
    messages += [encode_default_route(version, index, SOURCES[version]) for version in _among(versions)]
    _ask("make default route over", interface, messages, THERE_ALREADY)
    remove_default_routes(interface, set(SOURCES) - set(versions))


def remove_default_routes(interface: str, versions: Collection[int] = tuple(SOURCES)) -> None:
    """Take our default routes away; the interface stays up, as others use it by now. Raises TransportError."""
    index = _index(interface)
    messages = [encode_default_route(each, index, SOURCES[each], remove=True) for each in _among(versions)]
    _ask("remove default route over", interface, messages, GONE_ALREADY)


def add_mark_routing(mark: int) -> None:
    """Have packets with `mark` delivered to this machine, whomever they are for. Raises TransportError."""
    index = _index(LOOPBACK)
    versions = ip_versions()
    messages = [encode_local_route(version, index, mark) for version in versions]
    messages += [encode_mark_rule(version, mark, mark) for version in versions]
    _ask("make routing table", f"{mark:#x}", messages, THERE_ALREADY)


def remove_mark_routing(mark: int) -> None:
    """Undo `add_mark_routing`; none there is fine. Raises TransportError."""
    index = _index(LOOPBACK)
    versions = ip_versions()
    messages = [encode_mark_rule(version, mark, mark, remove=True) for version in versions]
    messages += [encode_local_route(version, index, mark, remove=True) for version in versions]
    _ask("remove routing table", f"{mark:#x}", messages, GONE_ALREADY)


def _among(versions: Collection[int]) -> list[int]:
    return [version for version in ip_versions() if version in versions]


def _index(interface: str) -> int:
    try:
        return socket.if_nametoindex(interface)
    except OSError as exc:
        raise TransportError("find interface", interface, os.strerror(errno.ENODEV).lower()) from exc


def _ask(verb: str, what: str, messages: Iterable[bytes], fine: Iterable[int] = ()) -> None:
    """Send each request and look at its answer; the errors of `fine` are none."""
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as sock:
            for message in messages:
                sock.sendto(message, (0, 0))
                code = decode_ack(sock.recv(4096))
                if code and code not in set(fine):
                    raise OSError(code, os.strerror(code))
    except OSError as exc:
        raise TransportError(verb, what, exc) from exc
