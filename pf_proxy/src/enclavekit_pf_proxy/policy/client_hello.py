# SPDX-License-Identifier: Apache-2.0
"""The server name in a TLS ClientHello, whatever records it is cut into. Pure.

Source: RFC 8446 sections 4.1.2 and 5.1, RFC 6066 section 3 (server_name), RFC 9849 (encrypted_client_hello).
"""

from __future__ import annotations

from dataclasses import dataclass

HANDSHAKE, CLIENT_HELLO = 22, 1
MAX_RECORD_BYTES = 2**14
MAX_HELLO_BYTES = 32 * 1024  # post-quantum ones have a few KiB
SERVER_NAME, ENCRYPTED = 0, 0xFE0D
OLD_ENCRYPTED = 0xFFCE  # encrypted_server_name, its draft before
HOST_NAME = 0


class MalformedHello(Exception):
    """It is none, or it contradicts itself."""


@dataclass(frozen=True, slots=True)
class Hello:
    server_name: bytes | None
    encrypted: bool


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


def read_hello(data: bytes) -> Hello | None:
    """Return what the ClientHello at the front of `data` shows; None if more is needed. Raises MalformedHello."""
    message = b""
    while True:
        if len(data) >= 2 and (data[0], data[1]) != (HANDSHAKE, 3):
            raise MalformedHello("not a handshake record")
        if len(data) < 5:
            return None
        length = int.from_bytes(data[3:5], "big")
        if not 1 <= length <= MAX_RECORD_BYTES:
            raise MalformedHello(f"a record of {length} bytes")
        piece, complete = data[5 : 5 + length], len(data) >= 5 + length
        message += piece
        if message and message[0] != CLIENT_HELLO:
            raise MalformedHello("not a ClientHello")
        if len(message) >= 4:
            wanted = 4 + int.from_bytes(message[1:4], "big")
            if wanted > MAX_HELLO_BYTES:
                raise MalformedHello(f"a ClientHello of {wanted} bytes")
            if len(message) >= wanted:
                # nothing may follow it before the server has answered, but for early data in records of its own
                if len(message) > wanted:
                    raise MalformedHello("something follows in its record")
                return _parse(_Reader(message[4:wanted]))
        if not complete:
            return None
        data = data[5 + length :]


def _parse(body: _Reader) -> Hello:
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
    return Hello(name, bool(seen & {ENCRYPTED, OLD_ENCRYPTED}))


def _parse_server_name(value: _Reader) -> bytes:
    names = value.vector(2)
    kind, name = names.number(1), names.vector(2).data
    if kind != HOST_NAME or names.data or value.data or not name:
        raise MalformedHello("not exactly one host name")
    return name
