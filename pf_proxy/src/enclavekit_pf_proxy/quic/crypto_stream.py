# SPDX-License-Identifier: Apache-2.0
"""The stream of handshake messages in a connection's Initial packets, put together again. Pure.

Frames come in any order, overlap and are repeated. Which of two bytes for one place a server takes is its own choice:
they must be the same.
Source: RFC 9000 section 19 (frames), RFC 9001 section 4 (CRYPTO), RFC 8446 section 4 (handshake messages).
"""

from __future__ import annotations

import enum
from collections.abc import Iterator

from enclavekit_pf_proxy.policy.client_hello import CLIENT_HELLO, MAX_HELLO_BYTES, Hello, MalformedHello, parse_hello
from enclavekit_pf_proxy.quic.packets import UnreadableDatagram, read_number

MAX_STREAM_BYTES = 2 * MAX_HELLO_BYTES  # a server may ask for a second hello
MAX_FRAMES = 1024  # of a packet, runs of PADDING as one; browsers cut a hello into a dozen
HEADER_BYTES = 4  # of a message: type and length


class Frame(enum.IntEnum):
    """All that an Initial packet may have; their numbers take one byte."""

    PADDING, PING, ACK, ACK_ECN, CRYPTO, CLOSE = 0x00, 0x01, 0x02, 0x03, 0x06, 0x1C


def read_crypto_frames(payload: bytes) -> list[tuple[int, bytes]]:
    """Return the CRYPTO frames of an Initial packet as (offset, bytes). Raises MalformedHello."""
    try:
        return list(_read_frames(payload))
    except UnreadableDatagram as exc:
        raise MalformedHello("a frame is cut off") from exc


def _read_frames(payload: bytes) -> Iterator[tuple[int, bytes]]:
    at, count = 0, 0
    while at < len(payload):
        count += 1
        if count > MAX_FRAMES:
            raise MalformedHello("too many frames")
        kind = payload[at]
        at += 1
        match kind:
            case Frame.PADDING:
                at = len(payload) - len(payload[at:].lstrip(b"\0"))
            case Frame.PING:
                pass
            case Frame.ACK | Frame.ACK_ECN:
                at = _skip_ack(payload, at, with_ecn=kind == Frame.ACK_ECN)
            case Frame.CRYPTO:
                offset, at = read_number(payload, at)
                size, at = read_number(payload, at)
                if at + size > len(payload):
                    raise MalformedHello("a frame is cut off")
                yield offset, payload[at : at + size]
                at += size
            case Frame.CLOSE:
                return  # the connection's end: a server reads nothing behind it
            case _:
                raise MalformedHello(f"a frame of type {kind}")


def _skip_ack(payload: bytes, at: int, *, with_ecn: bool) -> int:
    for _ in range(2):  # largest, delay
        _, at = read_number(payload, at)
    ranges, at = read_number(payload, at)
    if ranges > MAX_FRAMES:
        raise MalformedHello("too many ranges")
    for _ in range(1 + 2 * ranges + 3 * with_ecn):
        _, at = read_number(payload, at)
    return at


class CryptoStream:
    """Collects the bytes, and reads each hello once it is whole."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._known = bytearray()
        """1 for each byte that is there."""
        self._read = 0
        """Where the first message begins that is not whole yet."""

    @property
    def is_whole(self) -> bool:
        """Whether there are no bytes but those of whole messages."""
        return self._read == len(self._data)

    def add(self, offset: int, piece: bytes) -> None:
        """Take a frame. Raises MalformedHello if it contradicts others, or is too far off."""
        end = offset + len(piece)
        if end > MAX_STREAM_BYTES:
            raise MalformedHello(f"a handshake of {end} bytes")
        missing = end - len(self._data)
        if missing > 0:
            self._data += bytes(missing)
            self._known += bytes(missing)
        known = self._known[offset:end]
        if 1 in known:
            there = self._data[offset:end]
            if any(a != b and is_known for a, b, is_known in zip(there, piece, known, strict=True)):
                raise MalformedHello("two frames contradict each other")
        self._data[offset:end] = piece
        self._known[offset:end] = b"\1" * len(piece)

    def take_messages(self) -> list[tuple[int, bytes, Hello]]:
        """Return the hellos that have become whole: place, bytes, what is shown. Raises MalformedHello."""
        found = []
        while (end := self._message_end()) is not None:
            message = bytes(self._data[self._read : end])
            found.append((self._read, message, parse_hello(message[HEADER_BYTES:])))
            self._read = end
        return found

    def _message_end(self) -> int | None:
        """Return where the next message ends, if it is whole."""
        start = self._read
        if start == len(self._data) or not self._known[start]:
            return None
        if self._data[start] != CLIENT_HELLO:
            raise MalformedHello("not a ClientHello")
        if len(self._data) < start + HEADER_BYTES or 0 in self._known[start : start + HEADER_BYTES]:
            return None
        end = start + HEADER_BYTES + int.from_bytes(self._data[start + 1 : start + HEADER_BYTES], "big")
        if end - start > MAX_HELLO_BYTES:
            raise MalformedHello(f"a ClientHello of {end - start} bytes")
        return end if len(self._data) >= end and 0 not in self._known[start:end] else None
