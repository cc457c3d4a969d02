# SPDX-License-Identifier: Apache-2.0
"""The PROXY protocol, versions 1 and 2: who really connected, said by the proxy before it. Pure.

Source: https://www.haproxy.org/download/2.8/doc/proxy-protocol.txt
"""

from __future__ import annotations

import ipaddress
import re
import struct
from dataclasses import dataclass

from enclavekit_core.address import TcpAddress
from enclavekit_core.errors import RemoteProtocolError

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
HEAD = struct.Struct(">12sBBH")  # signature, version and command, family and protocol, bytes that follow
MAX_V1_BYTES = 107  # section 2.1, its line end included
MAX_V2_BYTES = 2048  # addresses take 36; the rest are TLVs
TLV = struct.Struct(">BH")  # type, bytes that follow
UNIQUE_ID = 0x05  # PP2_TYPE_UNIQUE_ID, section 2.2.5: up to 128 bytes; ours are 16 hexadecimal digits, as in our logs
OUR_ID = re.compile(rb"[0-9a-f]{16}")
COMMAND_LOCAL, COMMAND_PROXY = 0x20, 0x21
TCP4, TCP6 = 0x11, 0x21
ADDRESSES = {TCP4: struct.Struct(">4s4sHH"), TCP6: struct.Struct(">16s16sHH")}
PORT = re.compile(rb"0|[1-9][0-9]{0,4}")


@dataclass(frozen=True, slots=True)
class Proxied:
    """Both ends of the connection that the sender accepted; None where it does not say."""

    source: TcpAddress | None = None
    destination: TcpAddress | None = None
    connection_id: int | None = None
    """Of version 2, where the sender is a proxy of ours: 64 bits."""


def encode_v1(proxied: Proxied) -> bytes:
    """Return the line of version 1."""
    ends = _pair(proxied)
    if ends is None:
        return b"PROXY UNKNOWN\r\n"
    source, destination = ends
    family = "TCP4" if source.version == 4 else "TCP6"
    ports = f"{_port(proxied.source)} {_port(proxied.destination)}"
    return f"PROXY {family} {source} {destination} {ports}\r\n".encode()


def encode_v2(proxied: Proxied) -> bytes:
    """Return the block of version 2; without addresses it is LOCAL: the proxy's own."""
    ends = _pair(proxied)
    tail = b""
    if proxied.connection_id is not None:
        text = b"%016x" % proxied.connection_id
        tail = TLV.pack(UNIQUE_ID, len(text)) + text
    if ends is None:
        return HEAD.pack(SIGNATURE, COMMAND_LOCAL, 0, len(tail)) + tail
    family = TCP4 if ends[0].version == 4 else TCP6
    body = ADDRESSES[family].pack(ends[0].packed, ends[1].packed, _port(proxied.source), _port(proxied.destination))
    return HEAD.pack(SIGNATURE, COMMAND_PROXY, family, len(body) + len(tail)) + body + tail


def decode_proxied(data: bytes) -> tuple[Proxied, int] | None:
    """Decode either version at the front of `data`: (who, bytes consumed); None if more is needed.

    Raises: RemoteProtocolError if it is neither, or malformed; a receiver must then close.
    """
    if data.startswith(SIGNATURE[: len(data)]) and len(data) < len(SIGNATURE):
        return None
    if data.startswith(SIGNATURE):
        return _decode_v2(data)
    if not data.startswith(b"PROXY "[: len(data)]):
        raise RemoteProtocolError("cannot read PROXY header: it is neither version 1 nor 2")
    end = data.find(b"\r\n", 0, MAX_V1_BYTES)
    if end < 0:
        if len(data) >= MAX_V1_BYTES:
            raise RemoteProtocolError(f"cannot read PROXY header: no line end in {MAX_V1_BYTES} bytes")
        return None
    return _decode_line(bytes(data[:end])), end + 2


def size_of_v2(head: bytes) -> int:
    """Return how long a block of version 2 is, by its first HEAD.size bytes: for who must not read past its end.

    Raises: RemoteProtocolError if it is no such block, or longer than MAX_V2_BYTES.
    """
    signature, _command, _family, length = HEAD.unpack(head)
    if signature != SIGNATURE:
        raise RemoteProtocolError("cannot read PROXY header: it is not of version 2")
    if HEAD.size + length > MAX_V2_BYTES:
        raise RemoteProtocolError(f"cannot read PROXY header: {length} bytes")
    return HEAD.size + int(length)


def _decode_line(line: bytes) -> Proxied:
    words = line.split(b" ")
    if words[1] == b"UNKNOWN":
        return Proxied()  # whatever follows is to be ignored
    if len(words) != 6 or words[1] not in (b"TCP4", b"TCP6"):
        raise RemoteProtocolError("cannot read PROXY header: malformed line")
    version = 4 if words[1] == b"TCP4" else 6
    ends = []
    for host, port in ((words[2], words[4]), (words[3], words[5])):
        try:
            address = ipaddress.ip_address(host.decode("ascii"))
        except ValueError as exc:
            raise RemoteProtocolError("cannot read PROXY header: malformed address") from exc
        if address.version != version or not PORT.fullmatch(port) or int(port) > 65535:
            raise RemoteProtocolError("cannot read PROXY header: malformed line")
        ends.append(TcpAddress(str(address), int(port)))
    return Proxied(ends[0], ends[1])


def _decode_v2(data: bytes) -> tuple[Proxied, int] | None:
    if len(data) < HEAD.size:
        return None
    _, command, family, length = HEAD.unpack_from(data)
    if command not in (COMMAND_LOCAL, COMMAND_PROXY):
        raise RemoteProtocolError(f"cannot read PROXY header: version and command {command:#04x}")
    end = HEAD.size + length
    if end > MAX_V2_BYTES:
        raise RemoteProtocolError(f"cannot read PROXY header: {length} bytes")
    if len(data) < end:
        return None
    layout = ADDRESSES.get(family)
    if command == COMMAND_LOCAL or layout is None:
        # unspecified or a family that we do not carry: the receiver may accept it without
        return Proxied(connection_id=None if family else _find_id(data[HEAD.size : end])), end
    if length < layout.size:
        raise RemoteProtocolError(f"cannot read PROXY header: {length} bytes for family {family:#04x}")
    source, destination, source_port, destination_port = layout.unpack_from(data, HEAD.size)
    return (
        Proxied(
            TcpAddress(str(ipaddress.ip_address(source)), source_port),
            TcpAddress(str(ipaddress.ip_address(destination)), destination_port),
            _find_id(data[HEAD.size + layout.size : end]),
        ),
        end,
    )


def _find_id(tlvs: bytes) -> int | None:
    """Return the id that a proxy of ours gave the connection; TLVs that are cut off or others' are nobody's fault."""
    while len(tlvs) >= TLV.size:
        kind, length = TLV.unpack_from(tlvs)
        value, tlvs = tlvs[TLV.size : TLV.size + length], tlvs[TLV.size + length :]
        if kind == UNIQUE_ID and OUR_ID.fullmatch(value):
            return int(value, 16)
    return None


def _pair(
    proxied: Proxied,
) -> tuple[ipaddress.IPv4Address, ipaddress.IPv4Address] | tuple[ipaddress.IPv6Address, ipaddress.IPv6Address] | None:
    """Return both addresses in one family; None unless both are known."""
    if proxied.source is None or proxied.destination is None:
        return None
    try:
        source, destination = (ipaddress.ip_address(end.host) for end in (proxied.source, proxied.destination))
    except ValueError:
        return None  # a name: nothing that the header could say
    if isinstance(source, ipaddress.IPv4Address) and isinstance(destination, ipaddress.IPv4Address):
        return source, destination
    return _as_v6(source), _as_v6(destination)


def _as_v6(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> ipaddress.IPv6Address:
    if isinstance(address, ipaddress.IPv6Address):
        return address
    return ipaddress.IPv6Address(b"\0" * 10 + b"\xff\xff" + address.packed)


def _port(end: TcpAddress | None) -> int:
    return end.port if end is not None else 0
