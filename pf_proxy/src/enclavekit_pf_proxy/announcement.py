# SPDX-License-Identifier: Apache-2.0
"""What an upstream is told about a client: who really connected, and to what."""

from __future__ import annotations

import socket

from enclavekit_core.address import TcpAddress
from enclavekit_core.proxy_protocol import Proxied, encode_v1, encode_v2

from enclavekit_pf_proxy.wire.opening import Opening

IP = (socket.AF_INET, socket.AF_INET6)


def find_source(client: socket.socket, opening: Opening) -> TcpAddress | None:
    """Return who really connected: what a header said goes before the client's own address. None if nobody knows."""
    if opening.proxied is not None and opening.proxied.source is not None:
        return opening.proxied.source
    if opening.source is not None or client.family not in IP:
        return opening.source
    try:
        return _address_of(client.getpeername())
    except OSError:
        return None  # it has left


def encode_proxied(version: int, client: socket.socket, opening: Opening) -> bytes:
    """Return a PROXY header of `version`; nothing for 0."""
    if not version:
        return b""
    proxied = opening.proxied
    if proxied is None:
        accepted_at = opening.destination
        if accepted_at is None and client.family in IP:
            accepted_at = _address_of(client.getsockname())
        proxied = Proxied(find_source(client, opening), accepted_at)
    return (encode_v1 if version == 1 else encode_v2)(proxied)


def _address_of(name: tuple[str, int]) -> TcpAddress:
    return TcpAddress(name[0].partition("%")[0], name[1])  # a scope is this machine's business
