# SPDX-License-Identifier: Apache-2.0
"""What a TLS client sends behind its first ClientHello, until another one cannot follow. Pure.

A server that wants another key share asks for a second hello (HelloRetryRequest), and takes the name that is in that
one. It is sent in the clear, behind early data if the first hello offered any; whatever else is encrypted, or of TLS
1.2 where no server asks for a second one in the clear, says that there is none.
Source: RFC 8446 sections 4.1.2, 4.2.10, 5 and D.4 (a ChangeCipherSpec in between).
"""

from __future__ import annotations

from enclavekit_pf_proxy.policy.client_hello import (
    CLIENT_HELLO,
    HANDSHAKE,
    MAX_HELLO_BYTES,
    RECORD_HEADER_BYTES,
    TLS_MAJOR,
    Hello,
    MalformedHello,
    parse_hello,
)

CHANGE_CIPHER_SPEC, ALERT, APPLICATION_DATA = 20, 21, 23
MESSAGE_HEADER_BYTES, VERSION_AT = 4, 4
# of TLS 1.2, what follows a ChangeCipherSpec is a handshake record too, encrypted: by chance it begins as a hello does,
# of a length that no server would take
MAX_LENGTH_OF_ANY = 2**18


class LaterHellos:
    """Reads records; bytes may be passed on once they were fed."""

    def __init__(self, first: Hello) -> None:
        self._early_data = first.early_data
        self._header = b""
        self._kind = 0
        self._record_bytes = 0
        """What the record has still to bring."""
        self._message = b""
        self.is_over = False
        """Whether there can be no other hello."""

    def feed(self, data: bytes) -> list[Hello]:
        """Return the hellos that `data` completes. Raises MalformedHello; then nothing of `data` may be passed on."""
        found: list[Hello] = []
        while data and not self.is_over:
            if not self._record_bytes:
                data = self._read_header(data)
                continue
            piece, data = data[: self._record_bytes], data[self._record_bytes :]
            self._record_bytes -= len(piece)
            if self._kind == HANDSHAKE:
                self._message += piece
                self._read_message(found)
        return found

    def _read_header(self, data: bytes) -> bytes:
        missing = RECORD_HEADER_BYTES - len(self._header)
        self._header += data[:missing]
        if len(self._header) == RECORD_HEADER_BYTES:
            self._kind, self._record_bytes = self._header[0], int.from_bytes(self._header[3:], "big")
            self._header = b""
            if self._kind == APPLICATION_DATA:
                self.is_over = not self._early_data
            elif self._kind not in (CHANGE_CIPHER_SPEC, ALERT, HANDSHAKE):
                raise MalformedHello(f"a record of type {self._kind}")
        return data[missing:]

    def _read_message(self, found: list[Hello]) -> None:
        message = self._message
        if message[0] != CLIENT_HELLO:
            self.is_over = True
            return
        if len(message) <= VERSION_AT:
            return
        wanted = MESSAGE_HEADER_BYTES + int.from_bytes(message[1:MESSAGE_HEADER_BYTES], "big")
        if message[VERSION_AT] != TLS_MAJOR or wanted > MAX_LENGTH_OF_ANY:
            self.is_over = True
        elif wanted > MAX_HELLO_BYTES:
            raise MalformedHello(f"a ClientHello of {wanted} bytes")
        elif len(message) > wanted or (len(message) == wanted and self._record_bytes):
            raise MalformedHello("something follows in its record")
        elif len(message) == wanted:
            found.append(parse_hello(message[MESSAGE_HEADER_BYTES:]))
            self._message = b""
