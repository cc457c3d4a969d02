# SPDX-License-Identifier: Apache-2.0
"""The resolvers of this host: where its enclaves' DNS questions go."""

from __future__ import annotations

import ipaddress

from enclavekit_core.errors import InputError

from enclavekit_rbuilds.run.image import MAX_RESOLVERS

RESOLV_CONF = "/etc/resolv.conf"
DNS_PORT = 53
MAX_BYTES = 64 * 1024


def host_resolvers(path: str = RESOLV_CONF) -> tuple[tuple[str, int], ...]:
    """Return (address, port) of the resolvers that this host uses; none if it has no such file."""
    try:
        with open(path, encoding="utf-8", errors="replace") as source:
            return parse_resolv_conf(source.read(MAX_BYTES))
    except OSError:
        return ()


def parse_resolv_conf(text: str) -> tuple[tuple[str, int], ...]:
    """Return (address, port) of each nameserver, at most as many as a C library takes. Source: resolv.conf(5). Pure."""
    found = []
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 2 and words[0] == "nameserver" and _is_address(words[1]):
            found.append((words[1], DNS_PORT))
    # without any, the C library asks this machine
    return tuple(dict.fromkeys(found))[:MAX_RESOLVERS] or (("127.0.0.1", DNS_PORT),)


def parse_resolver(text: str) -> tuple[str, int]:
    """Return (address, port) of `ADDRESS[:PORT]`, IPv6 in brackets where a port follows. Raises InputError."""
    host, port = text, str(DNS_PORT)
    if text.startswith("[") and "]:" in text:
        host, _, port = text[1:].partition("]:")
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
    if not _is_address(host) or not (port.isascii() and port.isdigit()) or not 0 < int(port) < 65536:
        raise InputError("use --resolver", text, "it is not ADDRESS or ADDRESS:PORT")
    return host, int(port)


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
