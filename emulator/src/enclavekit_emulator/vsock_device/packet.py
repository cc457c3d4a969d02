# SPDX-License-Identifier: Apache-2.0
"""The header of a virtio-vsock packet. Pure.

Source: virtio 1.2, 5.10.6 (struct virtio_vsock_hdr); include/uapi/linux/virtio_vsock.h.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass

HEADER = struct.Struct("<QQIIIHHIII")
HEADER_BYTES = HEADER.size  # 44
TYPE_STREAM = 1
MAX_PAYLOAD_BYTES = 64 * 1024  # VIRTIO_VSOCK_MAX_PKT_BUF_SIZE: Linux sends no more in one packet
SHUTDOWN_RECEIVE, SHUTDOWN_SEND = 1, 2  # the sender of the packet will not receive, will not send any more
SHUTDOWN_BOTH = SHUTDOWN_RECEIVE | SHUTDOWN_SEND


class Op(enum.IntEnum):
    """What a packet is for."""

    REQUEST = 1
    RESPONSE = 2
    RST = 3
    SHUTDOWN = 4
    RW = 5
    CREDIT_UPDATE = 6
    CREDIT_REQUEST = 7


class PacketError(ValueError):
    """A header that no driver sends; the message is the cause."""


@dataclass(frozen=True, slots=True)
class Packet:
    """A header, all fields but the reserved ones."""

    src_cid: int
    dst_cid: int
    src_port: int
    dst_port: int
    op: int
    length: int = 0
    """Bytes of payload behind the header."""
    flags: int = 0
    buf_alloc: int = 0
    """How much the sender of this packet buffers for the connection, in bytes."""
    fwd_cnt: int = 0
    """How much of it its reader has taken since the start, modulo 2**32."""
    type: int = TYPE_STREAM


def encode_packet(packet: Packet) -> bytes:
    """Return the 44 bytes."""
    return HEADER.pack(
        packet.src_cid,
        packet.dst_cid,
        packet.src_port,
        packet.dst_port,
        packet.length,
        packet.type,
        packet.op,
        packet.flags,
        packet.buf_alloc,
        packet.fwd_cnt,
    )


def decode_packet(raw: bytes) -> Packet:
    """Return the header in the first 44 bytes of `raw`. Raises PacketError if there are fewer or a length is wrong."""
    if len(raw) < HEADER_BYTES:
        raise PacketError(f"a header of {len(raw)} bytes")
    src_cid, dst_cid, src_port, dst_port, length, kind, op, flags, buf_alloc, fwd_cnt = HEADER.unpack_from(raw)
    if length > MAX_PAYLOAD_BYTES or (length and op != Op.RW):
        raise PacketError(f"a packet of operation {op} with {length} bytes")
    return Packet(src_cid, dst_cid, src_port, dst_port, op, length, flags, buf_alloc, fwd_cnt, kind)
