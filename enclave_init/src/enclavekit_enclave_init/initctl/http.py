# SPDX-License-Identifier: Apache-2.0
"""The little HTTP of the control socket: GET of four paths, one answer, the end. Pure.

/metrics   Prometheus's text form      /ready   200 or 503      /live   200 or 503      /ready/UNIT, /live/UNIT
"""

from __future__ import annotations

import json
from typing import Any

from enclavekit_enclave_init.initctl.metrics import CONTENT_TYPE

REASONS = {200: "OK", 400: "Bad Request", 403: "Forbidden", 404: "Not Found", 503: "Service Unavailable"}


def parse_request_line(line: bytes) -> str | None:
    """Return the path of a GET; None if it is none."""
    words = line.split(b" ")
    if len(words) != 3 or words[0] != b"GET" or not words[2].startswith(b"HTTP/1.") or not words[1].isascii():
        return None
    return words[1].partition(b"?")[0].decode()


def encode_response(status: int, body: bytes, content_type: str = "application/json") -> bytes:
    """Return a whole response; the connection ends after it."""
    head = (
        f"HTTP/1.1 {status} {REASONS[status]}\r\nContent-Type: {content_type}\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body


def answer_get(path: str, health: dict[str, Any], metrics: str) -> bytes:
    """Return the response to a GET of `path`."""
    if path == "/metrics":
        return encode_response(200, metrics.encode(), CONTENT_TYPE)
    what, _, unit = path.removeprefix("/").partition("/")
    known = health["units"].get(unit) if unit else health
    if what not in ("ready", "live") or known is None:
        return encode_response(404, b'{"error":"there is no such page"}\n')
    return encode_response(200 if known[what] else 503, json.dumps(known).encode() + b"\n")
