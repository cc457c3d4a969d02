# SPDX-License-Identifier: Apache-2.0
"""The server name in a TLS ClientHello, whatever records it is cut into. Pure.

Source: RFC 8446 sections 4.1.2 and 5.1, RFC 6066 section 3 (server_name), RFC 9849 (encrypted_client_hello).
"""

from __future__ import annotations

from dataclasses import dataclass

HANDSHAKE, CLIENT_HELLO, TLS_MAJOR = 22, 1, 3
RECORD_HEADER_BYTES = 5
MAX_RECORD_BYTES = 2**14
MAX_HELLO_BYTES = 32 * 1024  # post-quantum ones have a few KiB
SERVER_NAME, EARLY_DATA, ENCRYPTED = 0, 42, 0xFE0D
OLD_ENCRYPTED = 0xFFCE  # encrypted_server_name, its draft before
HOST_NAME = 0


class MalformedHello(Exception):
    """It is none, or it contradicts itself."""


@dataclass(frozen=True, slots=True)
class Hello:
    server_name: bytes | None
    encrypted: bool
    early_data: bool = False
    """Whether data of the app may come before a second hello."""


class _Reader:
    """Takes bytes from the front."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def take(self, count: int) -> bytes:
        if count > len(self.data):
            raise MalformedHello("cut off")
        taken, self.data = self.data[:count], self.data[count:]
        return taken

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def vector(self, size: int) -> _Reader:
        return _Reader(self.take(self.number(size)))


class HelloReader:
    """Reads a ClientHello as it comes; each byte is looked at once, in however small pieces it is sent."""

    def __init__(self) -> None:
        self._rest = bytearray()
        """Of a record's header."""
        self._record_bytes = 0
        """What the record has still to bring."""
        self._message = bytearray()

    @property
    def rest(self) -> bytes:
        """What came behind a hello that is whole."""
        return bytes(self._rest)

    def feed(self, data: bytes) -> Hello | None:
        """Return what the ClientHello shows once it is whole; None if more is needed. Raises MalformedHello."""
        self._rest += data
        while self._rest:
            if not self._record_bytes and not self._read_header():
                return None
            piece = self._rest[: self._record_bytes]
            del self._rest[: len(piece)]
            self._record_bytes -= len(piece)
            self._message += piece
            if self._message and self._message[0] != CLIENT_HELLO:
                raise MalformedHello("not a ClientHello")
            if len(self._message) < 4:
                continue
            wanted = 4 + int.from_bytes(self._message[1:4], "big")
            if wanted > MAX_HELLO_BYTES:
                raise MalformedHello(f"a ClientHello of {wanted} bytes")
            if len(self._message) >= wanted:
                # nothing may follow it before the server has answered, but for early data in records of its own
                if len(self._message) > wanted or self._record_bytes:
                    raise MalformedHello("something follows in its record")
                return parse_hello(bytes(self._message[4:]))
        return None

    def _read_header(self) -> bool:
        """Take a record's header; return whether it is whole."""
        head = self._rest
        if head[0] != HANDSHAKE or (len(head) > 1 and head[1] != TLS_MAJOR):
            raise MalformedHello("not a handshake record")
        if len(head) < RECORD_HEADER_BYTES:
            return False
        self._record_bytes = int.from_bytes(head[3:5], "big")
        if not 1 <= self._record_bytes <= MAX_RECORD_BYTES:
            raise MalformedHello(f"a record of {self._record_bytes} bytes")
        del head[:RECORD_HEADER_BYTES]
        return True


def read_hello(data: bytes) -> Hello | None:
    """Return what the ClientHello at the front of `data` shows; None if more is needed. Raises MalformedHello."""
    return HelloReader().feed(data)


def parse_hello(message: bytes) -> Hello:
    """Return what a ClientHello shows. `message`: without its type and length. Raises MalformedHello."""
    body = _Reader(message)
    body.take(2 + 32)  # legacy_version, random
    body.vector(1)  # legacy_session_id
    body.vector(2)  # cipher_suites
    body.vector(1)  # legacy_compression_methods
    if not body.data:
        return Hello(None, False)  # before extensions there were none
    extensions = body.vector(2)
    if body.data:
        raise MalformedHello("something follows its extensions")
    seen: set[int] = set()
    name: bytes | None = None
    while extensions.data:
        kind, value = extensions.number(2), extensions.vector(2)
        if kind in seen:
            raise MalformedHello(f"extension {kind} twice")
        seen.add(kind)
        if kind == SERVER_NAME:
            name = _parse_server_name(value)
    return Hello(name, bool(seen & {ENCRYPTED, OLD_ENCRYPTED}), EARLY_DATA in seen)


def _parse_server_name(value: _Reader) -> bytes:
    names = value.vector(2)
    kind, name = names.number(1), names.vector(2).data
    if kind != HOST_NAME or names.data or value.data or not name:
        raise MalformedHello("not exactly one host name")
    return name
