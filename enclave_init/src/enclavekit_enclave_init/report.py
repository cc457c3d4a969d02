# SPDX-License-Identifier: Apache-2.0
"""The last word to the parent: one JSON line on vsock parent:9002 that says how the enclave ended.

    {"version":1,"unit":"app","exit_status":7,"signal":null,"reason":"app exited with 7"}

`unit` is null if no unit with OnExit has ended; of `exit_status` and `signal` at most one is not null.
"""

from __future__ import annotations

import json

from enclavekit_core.address import VsockAddress
from enclavekit_core.errors import TransportError
from enclavekit_core.streams import connect

from enclavekit_enclave_init.events import Outcome

VERSION = 1
MAX_REASON_CHARS = 1000  # the parent reads one line; a reason is a sentence


def encode_report(outcome: Outcome) -> bytes:
    """Return the line."""
    record = {
        "version": VERSION,
        "unit": outcome.unit,
        "exit_status": outcome.exit_status,
        "signal": outcome.signal,
        "reason": outcome.reason[:MAX_REASON_CHARS],
    }
    return json.dumps(record, separators=(",", ":")).encode() + b"\n"


def send_report(outcome: Outcome, cid: int, port: int, timeout_s: float) -> None:
    """Send the line. Raises TransportError, also when nobody listens, which is no fault."""
    address = VsockAddress(cid, port)
    with connect(address, timeout_s) as sock:
        sock.settimeout(timeout_s)
        try:
            sock.sendall(encode_report(outcome))
        except OSError as exc:
            raise TransportError("report to", address, exc) from exc
