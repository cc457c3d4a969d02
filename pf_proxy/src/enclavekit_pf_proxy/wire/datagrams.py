# SPDX-License-Identifier: Apache-2.0
"""Datagrams on a stream: each has its length in front. Pure.

    u16  bytes that follow, 0..MAX_DATAGRAM_BYTES, big-endian
    the datagram

or a notice about datagrams of the other direction:

    u16  65535
    u8   `Status`: REFUSED or UNREACHABLE, as an ICMP message said; others are passed over

One stream carries one session: one client's datagrams to one destination, and the answers. It is the same in both
directions, and a session ends with its stream. Source: docs/reference/pf-proxy-wire.md.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from enclavekit_core.errors import LocalProtocolError, RemoteProtocolError

LENGTH = struct.Struct(">H")
MAX_DATAGRAM_BYTES = 65507  # what UDP over IPv4 carries: 65535 less 20 of IP and 8 of UDP
NOTICE = 0xFFFF


@dataclass(frozen=True, slots=True)
class Notice:
    """A datagram, which one is not said, did not arrive."""

    status: int
    """Of `Status`, or unknown."""


def encode_notice(status: int) -> bytes:
    return LENGTH.pack(NOTICE) + bytes([status])


def encode_length(size: int) -> bytes:
    """Return what goes before a datagram of `size` bytes. Raises LocalProtocolError if it is too long."""
    if size > MAX_DATAGRAM_BYTES:
        raise LocalProtocolError(f"cannot encode datagram: {size} > {MAX_DATAGRAM_BYTES} bytes")
    return LENGTH.pack(size)


def encode_datagram(data: bytes) -> bytes:
    """Return the datagram as it is on the stream. Raises LocalProtocolError if it is too long."""
    return encode_length(len(data)) + data


class DatagramDecoder:
    """Takes a stream apart. Holds at most one datagram that is not whole."""

    def __init__(self) -> None:
        self._data = b""

    def feed(self, data: bytes) -> list[bytes | Notice]:
        """Take bytes of the stream; return the datagrams and notices that they complete.

        Raises: RemoteProtocolError for a length that no datagram has. Nothing may be fed after it.
        """
        data = self._data + data if self._data else data
        found: list[bytes | Notice] = []
        at, end = 0, len(data)
        while end - at >= LENGTH.size:
            (size,) = LENGTH.unpack_from(data, at)
            if size == NOTICE:
                if end - at == LENGTH.size:
                    break
                found.append(Notice(data[at + LENGTH.size]))
                at += LENGTH.size + 1
                continue
            if size > MAX_DATAGRAM_BYTES:
                raise RemoteProtocolError(f"cannot read datagram: {size} > {MAX_DATAGRAM_BYTES} bytes")
            start = at + LENGTH.size
            if end - start < size:
                break
            at = start + size
            found.append(data[start:at])
        self._data = data[at:]
        return found
