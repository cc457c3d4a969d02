# SPDX-License-Identifier: Apache-2.0
"""How requests and answers are cut out of a stream: three framings on one socket, told apart by the first byte. Pure.

    0x00        framed: u32 length, big-endian, then so many bytes of JSON; answers are framed as well, one or more
    " or {      the Rust enclave-init's: one bare JSON value, answered by one bare JSON value and the end of the stream
    G           HTTP: "GET /metrics HTTP/1.x" and headers up to an empty line, for Prometheus

A connection carries one request. A length below 16 MiB begins with 0x00, which no JSON does.
Source: docs/reference/initctl.md. House rule: everything that knows where a message ends lives in this file.
"""

from __future__ import annotations

import enum
import struct

from enclavekit_core.errors import LocalProtocolError, RemoteProtocolError

LENGTH = struct.Struct(">I")
MAX_REQUEST_BYTES = 256 * 1024  # the longest is ProcessStart with an argument list
MAX_ANSWER_BYTES = 64 * 1024 * 1024  # of one frame; a list of 1000 units with their dependencies has 1 MiB
MAX_HTTP_BYTES = 8192
BLANKS = b" \t\r\n"


class Framing(enum.Enum):
    FRAMED = "framed"
    BARE = "bare"
    HTTP = "http"


class RequestDecoder:
    """Bytes of one connection in, its request out."""

    def __init__(self) -> None:
        self.framing: Framing | None = None
        """Known with the first byte."""
        self._data = bytearray()
        self._scanned = 0
        self._depth = 0
        self._in_string = self._escaped = False
        self._done = self._refused = False

    def feed(self, data: bytes) -> bytes | None:
        """Return the request once it is complete: JSON, or the request line of HTTP.

        Raises: RemoteProtocolError; what comes after a request is one too.
        """
        if self._done:
            harmless = self.framing is Framing.HTTP or (self.framing is Framing.BARE and not data.strip(BLANKS))
            if data and (self._refused or not harmless):
                raise self._refuse("more than one request")
            return None
        self._data += data
        if self.framing is None:
            if not self._data:
                return None
            self.framing = self._tell_framing()
        match self.framing:
            case Framing.FRAMED:
                request = self._take_frame()
            case Framing.BARE:
                request = self._take_json()
            case Framing.HTTP:
                request = self._take_head()
        self._done = request is not None
        return request

    def _tell_framing(self) -> Framing:
        first = self._data[0]
        if first == 0:
            return Framing.FRAMED
        if first in b'"{' + BLANKS:
            return Framing.BARE
        if first == ord("G"):
            return Framing.HTTP
        raise self._refuse("it begins like none that is known")

    def _take_frame(self) -> bytes | None:
        if len(self._data) < LENGTH.size:
            return None
        size = LENGTH.unpack_from(self._data)[0]
        if size > MAX_REQUEST_BYTES:
            raise self._refuse(f"{size} bytes are more than {MAX_REQUEST_BYTES}")
        if len(self._data) > LENGTH.size + size:
            raise self._refuse("more than one request")
        return bytes(self._data[LENGTH.size :]) if len(self._data) == LENGTH.size + size else None

    def _take_json(self) -> bytes | None:
        if len(self._data) > MAX_REQUEST_BYTES:
            raise self._refuse(f"more than {MAX_REQUEST_BYTES} bytes")
        end = self._find_json_end()
        if end < 0:
            return None
        if self._data[end:].strip(BLANKS):
            raise self._refuse("more than one request")
        return bytes(self._data[:end].lstrip(BLANKS))

    def _find_json_end(self) -> int:
        """Return where the first string or object ends; -1 if it does not yet. Each byte is looked at once."""
        while self._scanned < len(self._data):
            byte = self._data[self._scanned]
            self._scanned += 1
            if self._in_string:
                if self._escaped:
                    self._escaped = False
                elif byte == ord("\\"):
                    self._escaped = True
                elif byte == ord('"'):
                    self._in_string = False
                    if not self._depth:
                        return self._scanned
            elif byte == ord('"'):
                self._in_string = True
            elif byte in b"{[":
                self._depth += 1
            elif byte in b"}]":
                self._depth -= 1
                if self._depth <= 0:
                    return self._scanned
            elif not self._depth and byte not in BLANKS:
                raise self._refuse("it is not a JSON string or object")
        return -1

    def _take_head(self) -> bytes | None:
        ends = [at for end in (b"\r\n\r\n", b"\n\n") if (at := self._data.find(end)) >= 0]
        if (min(ends) if ends else len(self._data)) > MAX_HTTP_BYTES:
            raise self._refuse(f"more than {MAX_HTTP_BYTES} bytes of headers")
        return bytes(self._data.partition(b"\n")[0].rstrip(b"\r")) if ends else None

    def _refuse(self, reason: str) -> RemoteProtocolError:
        self._done = self._refused = True
        return RemoteProtocolError(f"cannot read request: {reason}")


class AnswerDecoder:
    """Bytes in, framed answers out."""

    def __init__(self, max_bytes: int = MAX_ANSWER_BYTES) -> None:
        self._data = bytearray()
        self._max_bytes = max_bytes

    def feed(self, data: bytes) -> list[bytes]:
        """Return the answers that are complete. Raises RemoteProtocolError."""
        self._data += data
        answers = []
        while len(self._data) >= LENGTH.size:
            size = LENGTH.unpack_from(self._data)[0]
            if size > self._max_bytes:
                raise RemoteProtocolError(f"cannot read answer: {size} bytes are more than {self._max_bytes}")
            if len(self._data) < LENGTH.size + size:
                break
            answers.append(bytes(self._data[LENGTH.size : LENGTH.size + size]))
            del self._data[: LENGTH.size + size]
        return answers

    def feed_eof(self) -> None:
        """Raises RemoteProtocolError if an answer is cut off."""
        if self._data:
            raise RemoteProtocolError("cannot read answer: it is cut off")


def encode_frame(payload: bytes, max_bytes: int = MAX_ANSWER_BYTES) -> bytes:
    """Return the frame. Raises LocalProtocolError if the payload is too long."""
    if len(payload) > max_bytes:
        raise LocalProtocolError(f"cannot frame {len(payload)} bytes: {max_bytes} are the most")
    return LENGTH.pack(len(payload)) + payload
