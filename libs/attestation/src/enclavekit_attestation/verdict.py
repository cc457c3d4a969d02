# SPDX-License-Identifier: Apache-2.0
"""The verdict of `attest verify`, for people and for programs. Pure.

JSON: `verified` (bool), `mode`, `steps` ([{name, passed, detail, found, expected}]); if verified all fields of the
document, byte strings in hex, times in milliseconds, `binding` where --service was given; else `failed_step`, `reason`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator

from enclavekit_attestation.measurement import moment
from enclavekit_attestation.report import Mode, Report, Step, StepName, VerifiedDocument

DEVELOPMENT = "this proves nothing about AWS hardware or confidentiality"
SHOWN_BYTES = 48  # of user_data and the like, for people; --json has all
MARKS = {True: "ok", False: "FAIL", None: "-"}


def as_text(report: Report) -> str:
    lines = [step_line(step) for step in report.steps]
    document = report.document
    if document is None:
        return "\n".join([*lines, "", "NOT VERIFIED"])
    lines += ["", f"module     {document.module_id}", f"made at    {moment(document.timestamp_ms)}"]
    for index, value in sorted(document.pcrs.items()):
        if any(value) or index <= 2:
            lines.append(f"{f'PCR{index}':10} {value.hex()}")
    for name, field in (
        ("user_data", document.user_data),
        ("public_key", document.public_key),
        ("nonce", document.nonce),
    ):
        if field is not None:
            lines.append(f"{name:10} {show(field)}")
    lines += ["", *(f"note: {note}" for note in notes_of(document))]
    lines.append(f"VERIFIED ({document.mode.value}, as of {moment(document.verified_at_ms)})")
    return "\n".join(lines)


def as_json(report: Report, service: str | None = None) -> str:
    """Return the verdict; `service` is whose binding was checked."""
    document, failure = report.document, report.first_failure
    table: dict[str, object] = {"verified": report.passed, "mode": report.mode.value}
    if document is not None:
        table |= fields_of(document)
        bound = next((step.found for step in report.steps if step.name == StepName.BINDING), None)
        table["binding"] = None if bound is None else {"service": service, "spki_sha256": bound}
        table["notes"] = list(notes_of(document))
    elif failure is not None:
        table |= {"failed_step": failure.name, "reason": failure.detail}
    table["steps"] = [dataclasses.asdict(step) for step in report.steps]
    return json.dumps(table, indent=2)


def fields_of(document: VerifiedDocument) -> dict[str, object]:
    """Return the fields of a document for programs."""
    return {
        "verified_at_ms": document.verified_at_ms,
        "needs_anchor": document.needs_anchor,
        "development_root": document.development_root,
        "partition": document.partition,
        "root_sha256": document.root_sha256,
        "debug": document.debug,
        "module_id": document.module_id,
        "timestamp_ms": document.timestamp_ms,
        "pcrs": {str(index): value.hex() for index, value in sorted(document.pcrs.items())},
        "compared_pcrs": list(document.compared_pcrs),
        "measurement_set": document.measurement_set,
        "nonce_checked": document.nonce_checked,
        "public_key": hex_of(document.public_key),
        "user_data": hex_of(document.user_data),
        "nonce": hex_of(document.nonce),
    }


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


def step_line(step: Step) -> str:
    """Return one step for people."""
    return f"{MARKS[step.passed]:4}  {step.name:10} {step.detail}"


def show(value: bytes) -> str:
    """Return bytes for people: as text if that is what they are, else hex; escape codes never reach a terminal."""
    text = value.decode("ascii", "replace")
    if value and text.isascii() and text.isprintable():
        return text if len(text) <= 4 * SHOWN_BYTES else f"{text[: 4 * SHOWN_BYTES]}... ({len(value)} bytes)"
    return value.hex() if len(value) <= SHOWN_BYTES else f"{value[:SHOWN_BYTES].hex()}... ({len(value)} bytes)"


def hex_of(value: bytes | None) -> str | None:
    return None if value is None else value.hex()
