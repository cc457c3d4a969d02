# SPDX-License-Identifier: Apache-2.0
"""As much HTTP as a status socket and a metrics page need: one GET, one answer, the end. Pure.

Source: RFC 9112; a connection ends with its answer, as HTTP/1.0 has it.
"""

from __future__ import annotations

from enclavekit_core.errors import RemoteProtocolError

MAX_REQUEST_BYTES = 16 * 1024  # headers of curl and Prometheus take hundreds
REASONS = {
    200: "OK",
    400: "Bad Request",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    503: "Service Unavailable",
}


def decode_get(data: bytes) -> tuple[str, str] | None:
    """Decode a whole request: (path, query), as they were sent; None if more is needed.

    Raises: RemoteProtocolError if it is none that can be answered.
    """
    end = data.find(b"\r\n\r\n")
    if end < 0:
        if len(data) > MAX_REQUEST_BYTES:
            raise RemoteProtocolError(f"cannot read request: more than {MAX_REQUEST_BYTES} bytes")
        return None
    found = parse_request_line(data[: data.index(b"\r\n")])
    if found is None:
        raise RemoteProtocolError("cannot read request: it is no GET")
    return found


def parse_request_line(line: bytes) -> tuple[str, str] | None:
    """Return path and query of a GET, as they were sent; None if it is none."""
    words = line.split(b" ")
    if len(words) != 3 or words[0] != b"GET" or not words[2].startswith(b"HTTP/1.") or not words[1].isascii():
        return None
    path, _, query = words[1].decode("ascii").partition("?")
    return path, query


def encode_response(status: int, body: bytes, content_type: str = "application/json") -> bytes:
    """Return a whole response; the connection ends after it."""
    head = (
        f"HTTP/1.1 {status} {REASONS[status]}\r\nContent-Type: {content_type}\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body
