# SPDX-License-Identifier: Apache-2.0
"""The versioned header between two of our ends: what to connect to, for whom, and how that went. Pure.

A request, all integers big-endian:

    u8   marker 0xE5    neither 4 nor 6, so one byte tells it from the Rust framework's header
    u8   version 1
    u16  bytes that follow, 8..MAX_BODY_BYTES
    u64  connection id, the same in both ends' logs
    fields, each: u8 type, u8 length, value
        1  destination    u16 port, 4 or 16 bytes of address
        2  destination    u16 port, the host's name in ASCII
        3  source         u16 port, 4 or 16 bytes of address: who connected to the first end
        4  protocol       u8, as IP numbers them: 6 TCP, the default, or 17 UDP
        128..255          may be left unread by who does not know them; an unknown one below 128 is an error

and its answer, sent once the connection to the destination is there or is not; then the stream follows, for UDP one
of datagrams (see `datagrams`):

    u8   marker 0xE5
    u8   version 1
    u8   status         see `Status`
    u8   0
    u32  0
"""

from __future__ import annotations

import enum
import ipaddress
import re
import struct
from dataclasses import dataclass

from enclavekit_core.address import TcpAddress
from enclavekit_core.errors import LocalProtocolError, RemoteProtocolError

MARKER = 0xE5
VERSION = 1
HEAD = struct.Struct(">BBH")
REPLY = struct.Struct(">BBBBI")
ID = struct.Struct(">Q")
PORT = struct.Struct(">H")
FIELD = struct.Struct(">BB")
MAX_BODY_BYTES = 1024  # id, a name of 253 bytes and a source need 295
ADDRESS, NAME, SOURCE, PROTOCOL = 1, 2, 3, 4
OPTIONAL = 128
LABEL = re.compile(rb"(?!-)[a-z0-9_-]{1,63}(?<!-)")
MAX_NAME_BYTES = 253  # RFC 1035 without the root's dot


class Protocol(enum.Enum):
    TCP = "tcp"
    UDP = "udp"


NUMBERS = {Protocol.TCP: 6, Protocol.UDP: 17}  # of IP's protocol field
PROTOCOLS = {bytes([number]): protocol for protocol, number in NUMBERS.items()}


class Status(enum.IntEnum):
    """How connecting to the destination went."""

    CONNECTED = 0
    REFUSED = 1
    """Nobody listens there."""
    UNREACHABLE = 2
    TIMED_OUT = 3
    DENIED = 4
    """This end does not connect there, whoever asks."""
    BUSY = 5
    """A limit of this end."""
    UNKNOWN_NAME = 6
    MALFORMED = 7
    """The request is not understood."""
    FAILED = 8
    """Anything else."""


@dataclass(frozen=True, slots=True)
class Request:
    connection_id: int
    """0..2**64-1."""
    destination: TcpAddress
    """Host: an address or a name in lower case."""
    source: TcpAddress | None = None
    """Who connected to the first end, if it was over IP."""
    protocol: Protocol = Protocol.TCP


def encode_request(request: Request) -> bytes:
    """Return the header. Raises LocalProtocolError if a name or number does not fit."""
    fields = _encode_endpoint(request.destination, ADDRESS)
    if request.source is not None:
        fields += _encode_endpoint(request.source, SOURCE)
    if request.protocol is not Protocol.TCP:  # left out, so that ends from before there was another are understood
        fields += FIELD.pack(PROTOCOL, 1) + bytes([NUMBERS[request.protocol]])
    body = ID.pack(request.connection_id) + fields
    return HEAD.pack(MARKER, VERSION, len(body)) + body


def _encode_endpoint(endpoint: TcpAddress, kind: int) -> bytes:
    try:
        value = ipaddress.ip_address(endpoint.host).packed
    except ValueError:
        value = endpoint.host.encode("ascii", "replace")
        if kind == SOURCE or not is_name(value):
            raise LocalProtocolError(f"cannot encode {endpoint}: it is neither an address nor a host name") from None
        kind = NAME
    value = PORT.pack(endpoint.port) + value
    return FIELD.pack(kind, len(value)) + value


def decode_request(data: bytes) -> tuple[Request, int] | None:
    """Decode the header at the front of `data`: (request, bytes consumed), None if more is needed.

    Raises: RemoteProtocolError.
    """
    if data and data[0] != MARKER:
        raise RemoteProtocolError(f"cannot read request: marker {data[0]}")
    if len(data) >= 2 and data[1] != VERSION:
        raise RemoteProtocolError(f"cannot read request: version {data[1]}")
    if len(data) < HEAD.size:
        return None
    _, _, length = HEAD.unpack_from(data)
    if not ID.size <= length <= MAX_BODY_BYTES:
        raise RemoteProtocolError(f"cannot read request: {length} bytes")
    end = HEAD.size + length
    if len(data) < end:
        return None
    (connection_id,) = ID.unpack_from(data, HEAD.size)
    fields = _split_fields(bytes(data[HEAD.size + ID.size : end]))
    ends = {kind: _decode_endpoint(kind, fields[kind]) for kind in (ADDRESS, NAME, SOURCE) if kind in fields}
    if (ADDRESS in ends) == (NAME in ends):
        raise RemoteProtocolError("cannot read request: it has not exactly one destination")
    protocol = PROTOCOLS.get(fields.get(PROTOCOL, b"\x06"))
    if protocol is None:
        raise RemoteProtocolError("cannot read request: unknown protocol")
    destination = ends[ADDRESS] if ADDRESS in ends else ends[NAME]
    return Request(connection_id, destination, ends.get(SOURCE), protocol), end


def _split_fields(data: bytes) -> dict[int, bytes]:
    """Return the values that may not be skipped, under their types."""
    fields: dict[int, bytes] = {}
    while data:
        if len(data) < FIELD.size or len(data) < FIELD.size + data[1]:
            raise RemoteProtocolError("cannot read request: a field is cut off")
        kind, value, data = data[0], data[2 : 2 + data[1]], data[2 + data[1] :]
        if kind >= OPTIONAL:
            continue
        if kind not in (ADDRESS, NAME, SOURCE, PROTOCOL):
            raise RemoteProtocolError(f"cannot read request: unknown field {kind}")
        if kind in fields:
            raise RemoteProtocolError(f"cannot read request: field {kind} is there twice")
        fields[kind] = value
    return fields


def _decode_endpoint(kind: int, value: bytes) -> TcpAddress:
    port, host = int.from_bytes(value[:2], "big"), value[2:]
    if not port:
        raise RemoteProtocolError("cannot read request: a port is 0 or missing")
    if kind == NAME:
        if not is_name(host):
            raise RemoteProtocolError("cannot read request: the destination is no host name")
        return TcpAddress(host.decode(), port)
    if len(host) not in (4, 16):
        raise RemoteProtocolError(f"cannot read request: an address of {len(host)} bytes")
    return TcpAddress(str(ipaddress.ip_address(host)), port)


def is_name(name: bytes) -> bool:
    """Say whether `name` is a host name in lower case, which no address is mistaken for."""
    labels = name.split(b".")
    return len(name) <= MAX_NAME_BYTES and all(map(LABEL.fullmatch, labels)) and not labels[-1].isdigit()


def encode_reply(status: Status) -> bytes:
    return REPLY.pack(MARKER, VERSION, status, 0, 0)


def decode_reply(data: bytes) -> Status | None:
    """Return the status once `data`, at most REPLY.size bytes, is whole; None before.

    Raises: RemoteProtocolError. A status of a later version is FAILED.
    """
    if data and data[0] != MARKER:
        raise RemoteProtocolError(f"cannot read reply: marker {data[0]}")
    if len(data) >= 2 and data[1] != VERSION:
        raise RemoteProtocolError(f"cannot read reply: version {data[1]}")
    if len(data) < REPLY.size:
        return None
    status = REPLY.unpack_from(data)[2]
    return Status(status) if status in Status._value2member_map_ else Status.FAILED
