# SPDX-License-Identifier: Apache-2.0
"""What an upstream is told about a client: who really connected, and to what. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace

from enclavekit_core.address import TcpAddress
from enclavekit_core.proxy_protocol import Proxied, encode_v1, encode_v2

from enclavekit_pf_proxy.wire.opening import Opening


@dataclass(frozen=True, slots=True)
class Ends:
    """The client's connection as its socket has it; None where it has no IP address, or the client has left."""

    source: TcpAddress | None = None
    accepted_at: TcpAddress | None = None


NO_ENDS = Ends()


def find_source(opening: Opening, ends: Ends) -> TcpAddress | None:
    """Return who really connected: what a header said goes before the client's own address. None if nobody knows."""
    if opening.proxied is not None and opening.proxied.source is not None:
        return opening.proxied.source
    return opening.source or ends.source


def encode_proxied(version: int, opening: Opening, ends: Ends, number: int) -> bytes:
    """Return a PROXY header of `version`; nothing for 0. Version 2 has the connection's `number`."""
    if not version:
        return b""
    proxied = opening.proxied
    if proxied is None:
        proxied = Proxied(find_source(opening, ends), opening.destination or ends.accepted_at)
    return encode_v1(proxied) if version == 1 else encode_v2(replace(proxied, connection_id=number))
