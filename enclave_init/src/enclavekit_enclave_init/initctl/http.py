# SPDX-License-Identifier: Apache-2.0
"""The little HTTP of the control socket: GET of four paths, one answer, the end. Pure.

/metrics   Prometheus's text form      /ready   200 or 503      /live   200 or 503      /ready/UNIT, /live/UNIT
"""

from __future__ import annotations

import json
from typing import Any

from enclavekit_core.exposition import CONTENT_TYPE
from enclavekit_core.http_get import encode_response


def answer_get(path: str, health: dict[str, Any], metrics: str) -> bytes:
    """Return the response to a GET of `path`."""
    if path == "/metrics":
        return encode_response(200, metrics.encode(), CONTENT_TYPE)
    what, _, unit = path.removeprefix("/").partition("/")
    known = health["units"].get(unit) if unit else health
    if what not in ("ready", "live") or known is None:
        return encode_response(404, b'{"error":"there is no such page"}\n')
    return encode_response(200 if known[what] else 503, json.dumps(known).encode() + b"\n")
