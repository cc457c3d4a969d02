# SPDX-License-Identifier: Apache-2.0
"""The forms in which `/doc/` shows an attestation document. Pure.

Names and field spellings are those of the Rust ra-web-srv, whose clients go on working. The `debug` views are for
people: where the Rust server shows Rust's rendering, we show the same fields as text.
"""

from __future__ import annotations

import json

from enclavekit_attestation.cose import PROTECTED_ES384
from enclavekit_attestation.document import AttestationDocument, parse_document

HEX_VIEWS = ("bin_hex", "bin", "hex", "cose_doc", "cose_doc_bin", "cose_doc_hex", "cose_doc_bin_hex")
PAYLOAD_VIEWS = ("att_doc", "att_doc_bin", "att_doc_hex", "att_doc_bin_hex")
USER_DATA_VIEWS = ("att_doc_user_data", "att_doc_user_data_json", "att_doc_user_data_json_hex")
PCR_VIEWS = ("pcrs", "pcr")
DEBUG_VIEWS = ("json_debug", "debug", "debug_pretty_print")
DEFAULT_VIEW = "json_hex"
SUPPORTED = ("bin_hex", "att_doc", "att_doc_user_data", "pcrs", "json_hex", "json_str", *DEBUG_VIEWS)  # one name each


def pcr_text(pcrs: dict[int, bytes]) -> str:
    """Return PCRs as `0: hex, 1: hex, ...`."""
    return ", ".join(f"{index}: {value.hex()}" for index, value in sorted(pcrs.items()))


def show_document(raw: bytes, view: str) -> object:
    """Return a JSON value for the document `raw`; of an unknown view, the hex and the names that there are.

    Raises:
        VerificationError if the NSM gave us what is no document.
    """
    if view in HEX_VIEWS:
        return raw.hex()
    document = parse_document(raw)
    if view in PAYLOAD_VIEWS:
        return document.envelope.payload.hex()
    if view in USER_DATA_VIEWS:
        return {"user_data": _hex(document.user_data), "public_key": _hex(document.public_key)}
    if view in PCR_VIEWS:
        return {"PCRs": pcr_text(document.pcrs)}
    if view == "json_hex":
        return _in_envelope(document, _fields(document))
    if view == "json_str":
        return _in_envelope(document, json.dumps(_fields_of_numbers(document), separators=(",", ":")))
    if view == "debug_pretty_print":
        return json.dumps(_in_envelope(document, _fields(document)), indent=4)
    if view in DEBUG_VIEWS:
        return json.dumps(_in_envelope(document, _fields(document)))
    return {"att_doc_hex": raw.hex(), "supported_views": list(SUPPORTED)}


def _in_envelope(document: AttestationDocument, payload: object) -> dict[str, object]:
    return {
        # CBOR key and value of the only header that an NSM sets: 1 (algorithm), -35 (ES384)
        "protected_header": f"{PROTECTED_ES384[1:2].hex()}: {PROTECTED_ES384[2:].hex()}",
        "unprotected_header": "",
        "payload": payload,
        "signature": document.envelope.signature.hex(),
    }


def _fields(document: AttestationDocument) -> dict[str, object]:
    return {
        "module_id": document.module_id,
        "digest": "SHA384",
        "timestamp": str(document.timestamp_ms),
        "PCRs": pcr_text(document.pcrs),
        "certificate": document.certificate.hex(),
        "ca_bundle": ", ".join(certificate.hex() for certificate in document.cabundle),
        "public_key": _hex(document.public_key),
        "user_data": None if document.user_data is None else document.user_data.decode("utf-8", "replace"),
        "nonce": _hex(document.nonce),
    }


def _fields_of_numbers(document: AttestationDocument) -> dict[str, object]:
    """Return the document as Rust's serde writes it: bytes as arrays of numbers."""
    return {
        "module_id": document.module_id,
        "digest": "SHA384",
        "timestamp": document.timestamp_ms,
        "pcrs": {str(index): list(value) for index, value in sorted(document.pcrs.items())},
        "certificate": list(document.certificate),
        "cabundle": [list(certificate) for certificate in document.cabundle],
        "public_key": _numbers(document.public_key),
        "user_data": _numbers(document.user_data),
        "nonce": _numbers(document.nonce),
    }


def _hex(value: bytes | None) -> str | None:
    return None if value is None else value.hex()


def _numbers(value: bytes | None) -> list[int] | None:
    return None if value is None else list(value)
