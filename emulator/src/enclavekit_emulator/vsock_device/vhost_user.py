# SPDX-License-Identifier: Apache-2.0
"""The messages of the vhost-user protocol that a socket device needs. Pure: bytes in, values out.

Source: QEMU, docs/interop/vhost-user.rst.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass

HEADER = struct.Struct("<III")  # request, flags, bytes of payload
VERSION = 0x1
FLAG_REPLY, FLAG_NEED_REPLY = 0x4, 0x8
MAX_PAYLOAD_BYTES = 4096  # the largest that concerns us, a memory table of 8 regions, has 264
MAX_REGIONS = 8
MAX_DESCRIPTORS = MAX_REGIONS

U64 = struct.Struct("<Q")
VRING_STATE = struct.Struct("<II")  # index, number
VRING_ADDRESS = struct.Struct("<IIQQQQ")  # index, flags, descriptors, used, available, log
REGION = struct.Struct("<QQQQ")  # guest address, size, user address, offset in the file
CONFIG = struct.Struct("<III")  # offset, size, flags
NO_DESCRIPTOR = 0x100  # in the u64 of SET_VRING_KICK and its like: poll instead


class Request(enum.IntEnum):
    """Requests by number; those that are not here are answered with an error."""

    GET_FEATURES = 1
    SET_FEATURES = 2
    SET_OWNER = 3
    RESET_OWNER = 4
    SET_MEM_TABLE = 5
    SET_VRING_NUM = 8
    SET_VRING_ADDR = 9
    SET_VRING_BASE = 10
    GET_VRING_BASE = 11
    SET_VRING_KICK = 12
    SET_VRING_CALL = 13
    SET_VRING_ERR = 14
    GET_PROTOCOL_FEATURES = 15
    SET_PROTOCOL_FEATURES = 16
    GET_QUEUE_NUM = 17
    SET_VRING_ENABLE = 18
    GET_CONFIG = 24
    SET_CONFIG = 25


class ProtocolError(ValueError):
    """A message that QEMU does not send; the message is the cause."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message."""

    request: int
    flags: int
    payload: bytes

    @property
    def needs_reply(self) -> bool:
        return bool(self.flags & FLAG_NEED_REPLY)

    def u64(self) -> int:
        """Return the payload as a number. Raises ProtocolError if it is none."""
        return int(self._unpack(U64)[0])

    def vring_state(self) -> tuple[int, int]:
        """Return (index, number)."""
        index, number = self._unpack(VRING_STATE)
        return index, number

    def vring_address(self) -> tuple[int, int, int, int]:
        """Return (index, descriptors, used, available), addresses as QEMU sees them."""
        index, _flags, descriptors, used, available, _log = self._unpack(VRING_ADDRESS)
        return index, descriptors, used, available

    def regions(self) -> list[tuple[int, int, int, int]]:
        """Return (guest address, size, user address, offset in the file) per region."""
        if len(self.payload) < 8:
            raise ProtocolError("a memory table without a count")
        count = int.from_bytes(self.payload[:4], "little")
        if count > MAX_REGIONS or len(self.payload) != 8 + count * REGION.size:
            raise ProtocolError(f"a memory table of {count} regions in {len(self.payload)} bytes")
        return list(REGION.iter_unpack(self.payload[8:]))

    def config(self) -> tuple[int, int]:
        """Return (offset, size) of a question for configuration space."""
        if len(self.payload) < CONFIG.size:
            raise ProtocolError("a question for configuration without its size")
        offset, size, _flags = CONFIG.unpack_from(self.payload)
        return offset, size

    def _unpack(self, form: struct.Struct) -> tuple[int, ...]:
        if len(self.payload) != form.size:
            raise ProtocolError(f"request {self.request} with {len(self.payload)} bytes, not {form.size}")
        return form.unpack(self.payload)


def parse_header(raw: bytes) -> tuple[int, int, int]:
    """Return (request, flags, bytes of payload). Raises ProtocolError."""
    request, flags, size = HEADER.unpack(raw)
    if flags & 0x3 != VERSION:
        raise ProtocolError(f"protocol version {flags & 0x3}")
    if size > MAX_PAYLOAD_BYTES:
        raise ProtocolError(f"a message of {size} bytes")
    return request, flags, size


def encode_reply(request: int, payload: bytes) -> bytes:
    """Return the reply to `request`."""
    return HEADER.pack(request, VERSION | FLAG_REPLY, len(payload)) + payload
