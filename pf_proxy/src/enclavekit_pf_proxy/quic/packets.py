# SPDX-License-Identifier: Apache-2.0
"""A datagram of QUIC taken apart into the packets with a long header that are in it. No keys are needed. Pure.

Source: RFC 9000 sections 12.2 (coalesced packets), 16 (numbers) and 17.2 (long headers); RFC 9369 section 3.2.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

LONG_HEADER = 0x80
V1, V2 = 1, 0x6B3343CF
MAX_ID_BYTES = 20
MAX_PACKETS = 8  # of one datagram; a client has an Initial, a 0-RTT and a Handshake packet in one
ID_LENGTH_AT = 5  # behind the first byte and the version


class UnreadableDatagram(Exception):
    """A server might read it; here it cannot be, so it is not to be passed on."""


class Kind(enum.Enum):
    INITIAL = "initial"
    ZERO_RTT = "0-rtt"
    HANDSHAKE = "handshake"
    RETRY = "retry"


# by the two bits of the first byte
KINDS = {
    V1: (Kind.INITIAL, Kind.ZERO_RTT, Kind.HANDSHAKE, Kind.RETRY),
    V2: (Kind.RETRY, Kind.INITIAL, Kind.ZERO_RTT, Kind.HANDSHAKE),
}


@dataclass(frozen=True, slots=True)
class LongPacket:
    """One packet with a long header."""

    kind: Kind
    version: int
    destination_id: bytes
    """Of the connection, as the server knows or is to know it."""
    data: bytes
    """All of the packet, nothing of the others in its datagram."""
    number_at: int
    """Where in `data` the packet number begins, which is encrypted as all that follows."""


def is_long(datagram: bytes) -> bool:
    """Say whether a datagram begins with a long header: no others begin connections."""
    return bool(datagram) and datagram[0] & LONG_HEADER != 0


def begins_connection(datagram: bytes) -> bool:
    """Say whether a datagram may be among the first of a connection, in a version that can be read."""
    kinds = KINDS.get(int.from_bytes(datagram[1:ID_LENGTH_AT], "big")) if is_long(datagram) else None
    return kinds is not None and kinds[datagram[0] >> 4 & 3] in (Kind.INITIAL, Kind.ZERO_RTT)


def split_datagram(datagram: bytes) -> list[LongPacket]:
    """Return the packets with long headers at the front of a client's datagram; whatever follows has a short one.

    Raises: UnreadableDatagram.
    """
    found: list[LongPacket] = []
    while is_long(datagram):
        if len(found) == MAX_PACKETS:
            raise UnreadableDatagram("too many packets")
        packet = _read_packet(datagram)
        found.append(packet)
        datagram = datagram[len(packet.data) :]
    return found


def _read_packet(data: bytes) -> LongPacket:
    version = int.from_bytes(data[1:ID_LENGTH_AT], "big")
    if version not in KINDS:
        raise UnreadableDatagram("an unknown version")
    kind = KINDS[version][data[0] >> 4 & 3]
    if kind is Kind.RETRY:
        raise UnreadableDatagram("a server's packet")
    destination_id, at = _read_id(data, ID_LENGTH_AT)
    _, at = _read_id(data, at)
    if kind is Kind.INITIAL:
        token_bytes, at = read_number(data, at)
        at += token_bytes
    length, at = read_number(data, at)
    if at + length > len(data):
        raise UnreadableDatagram("cut off")
    return LongPacket(kind, version, destination_id, data[: at + length], at)


def _read_id(data: bytes, at: int) -> tuple[bytes, int]:
    if at >= len(data) or data[at] > MAX_ID_BYTES:
        raise UnreadableDatagram("no connection id")
    end = at + 1 + data[at]
    return data[at + 1 : end], end


def read_number(data: bytes, at: int) -> tuple[int, int]:
    """Return the number of variable length at `at` and where it ends. Raises UnreadableDatagram if it is cut off."""
    if at >= len(data):
        raise UnreadableDatagram("cut off")
    end = at + (1 << (data[at] >> 6))
    if end > len(data):
        raise UnreadableDatagram("cut off")
    return int.from_bytes(data[at:end], "big") & ((1 << (8 * (end - at) - 2)) - 1), end
