# SPDX-License-Identifier: Apache-2.0
"""The verdict of `attest verify`, for people and for programs. Pure.

JSON: `verified` (bool), `steps` ([{name, detail}] that passed); if verified all fields of the document, byte strings in
hex, times in milliseconds, `binding` where --service was given; if not `failed_step` and `reason`.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator, Sequence

from enclavekit_core.errors import VerificationError

from enclavekit_attestation.verify import Mode, Step, VerifiedDocument

DEVELOPMENT = "this proves nothing about AWS hardware or confidentiality"
Binding = tuple[str, bytes]  # service, SHA-256 of its TLS key's SPKI
SHOWN_BYTES = 48  # of user_data and the like, for people; --json has all


def success_text(document: VerifiedDocument, steps: Sequence[Step]) -> str:
    lines = [_step_line("ok", step.name, step.detail) for step in steps]
    lines += ["", f"module     {document.module_id}", f"made at    {_moment(document.timestamp_ms)}"]
    for index, value in sorted(document.pcrs.items()):
        if any(value) or index <= 2:
            lines.append(f"{f'PCR{index}':10} {value.hex()}")
    for name, field in (
        ("user_data", document.user_data),
        ("public_key", document.public_key),
        ("nonce", document.nonce),
    ):
        if field is not None:
            lines.append(f"{name:10} {_show(field)}")
    lines += ["", *(f"note: {note}" for note in notes_of(document))]
    lines.append(f"VERIFIED ({document.mode.value}, as of {_moment(document.verified_at_ms)})")
    return "\n".join(lines)


def success_json(document: VerifiedDocument, steps: Sequence[Step], binding: Binding | None = None) -> str:
    return json.dumps(
        {
            "verified": True,
            "mode": document.mode.value,
            "verified_at_ms": document.verified_at_ms,
            "development_root": document.development_root,
            "root_sha256": document.root_sha256,
            "debug": document.debug,
            "module_id": document.module_id,
            "timestamp_ms": document.timestamp_ms,
            "pcrs": {str(index): value.hex() for index, value in sorted(document.pcrs.items())},
            "compared_pcrs": list(document.compared_pcrs),
            "nonce_checked": document.nonce_checked,
            "public_key": _hex(document.public_key),
            "user_data": _hex(document.user_data),
            "nonce": _hex(document.nonce),
            "binding": None if binding is None else {"service": binding[0], "spki_sha256": binding[1].hex()},
            "notes": list(notes_of(document)),
            "steps": [{"name": step.name, "detail": step.detail} for step in steps],
        },
        indent=2,
    )


def failure_text(steps: Sequence[Step], error: VerificationError) -> str:
    lines = [_step_line("ok", step.name, step.detail) for step in steps]
    lines += [_step_line("FAIL", error.what, error.reason), "", "NOT VERIFIED"]
    return "\n".join(lines)


def failure_json(steps: Sequence[Step], error: VerificationError) -> str:
    return json.dumps(
        {
            "verified": False,
            "failed_step": error.what,
            "reason": error.reason,
            "steps": [{"name": step.name, "detail": step.detail} for step in steps],
        },
        indent=2,
    )


def notes_of(document: VerifiedDocument) -> Iterator[str]:
    """Yield what a reader of the verdict must know about its limits."""
    if document.development_root:
        yield f"verified under a development root: {DEVELOPMENT}"
    if document.debug:
        yield "the enclave runs in debug mode: its memory and console are open to the host"
    elif not document.compared_pcrs:
        yield "no PCR was compared: this says that some enclave made the document, not which code runs in it"
    if document.mode is Mode.ARCHIVAL:
        yield "archival check: that the document existed at this moment must be known from elsewhere"
    elif not document.nonce_checked:
        yield "no nonce was asked for: the document may be replayed within its greatest age"


def _step_line(mark: str, name: str, detail: str) -> str:
    return f"{mark:4}  {name:10} {detail}"


def _moment(at_ms: int) -> str:
    try:
        moment = datetime.datetime.fromtimestamp(at_ms / 1000, datetime.UTC)
    except (OverflowError, ValueError, OSError):
        return f"{at_ms} ms"
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{at_ms % 1000:03}Z"


def _show(value: bytes) -> str:
    """Return bytes for people: as text if that is what they are, else hex; escape codes never reach a terminal."""
    text = value.decode("ascii", "replace")
    if value and text.isascii() and text.isprintable():
        return text if len(text) <= 4 * SHOWN_BYTES else f"{text[: 4 * SHOWN_BYTES]}... ({len(value)} bytes)"
    return value.hex() if len(value) <= SHOWN_BYTES else f"{value[:SHOWN_BYTES].hex()}... ({len(value)} bytes)"


def _hex(value: bytes | None) -> str | None:
    return None if value is None else value.hex()
