# SPDX-License-Identifier: Apache-2.0
"""The destination header of the Rust framework's transparent pair: 7 bytes for IPv4, 19 for IPv6. Pure.

    u8 marker      4 or 6
    u8[4|16]       the address, last byte first: a little-endian integer
    u16            the port, little-endian

Nothing answers it; what follows is the stream. Source: docs/reference/pf-proxy-wire.md.
"""

from __future__ import annotations

import ipaddress
import struct

from enclavekit_core.address import TcpAddress
from enclavekit_core.errors import LocalProtocolError, RemoteProtocolError

MARKER_V4, MARKER_V6 = 4, 6
LENGTHS = {MARKER_V4: 7, MARKER_V6: 19}
PORT = struct.Struct("<H")


def encode_destination(destination: TcpAddress) -> bytes:
    """Return the header. Raises LocalProtocolError for a name: the header has no room for one."""
    try:
        address = ipaddress.ip_address(destination.host)
    except ValueError as exc:
        raise LocalProtocolError(f"cannot encode destination {destination}: it is no IP address") from exc
    marker = MARKER_V4 if address.version == 4 else MARKER_V6
    return bytes([marker]) + address.packed[::-1] + PORT.pack(destination.port)


def decode_destination(data: bytes) -> tuple[TcpAddress, int] | None:
    """Decode the header at the front of `data`.

    Returns: (destination, bytes consumed); None if `data` does not hold all of it.
    Raises: RemoteProtocolError for any other marker and for port 0.
    """
    if not data:
        return None
    length = LENGTHS.get(data[0])
    if length is None:
        raise RemoteProtocolError(f"cannot read destination: marker {data[0]} is neither 4 nor 6")
    if len(data) < length:
        return None
    address = ipaddress.ip_address(bytes(data[1 : length - 2][::-1]))
    (port,) = PORT.unpack_from(data, length - 2)
    if not port:
        raise RemoteProtocolError("cannot read destination: its port is 0")
    return TcpAddress(str(address), port), length
