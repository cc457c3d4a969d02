# SPDX-License-Identifier: Apache-2.0
"""The forms in which `/doc/` shows an attestation document. Pure.

Field names and spellings are those of the Rust ra-web-srv, whose clients go on working.
"""

from __future__ import annotations

from enclavekit_attestation.cose import PROTECTED_ES384
from enclavekit_attestation.document import AttestationDocument, parse_document

HEX_VIEWS = ("bin_hex", "bin", "hex", "cose_doc", "cose_doc_bin", "cose_doc_hex", "cose_doc_bin_hex")
DEFAULT_VIEW = "json_hex"
VIEWS = (DEFAULT_VIEW, *HEX_VIEWS)


def pcr_text(pcrs: dict[int, bytes]) -> str:
    """Return PCRs as `0: hex, 1: hex, ...`."""
    return ", ".join(f"{index}: {value.hex()}" for index, value in sorted(pcrs.items()))


def show_document(raw: bytes, view: str) -> object:
    """Return a JSON value for the document `raw`.

    Args:
        view: one of VIEWS.
    Raises:
        VerificationError if the NSM gave us what is no document.
    """
    return raw.hex() if view in HEX_VIEWS else _json_hex(parse_document(raw))


def _json_hex(document: AttestationDocument) -> dict[str, object]:
    return {
        # CBOR key and value of the only header that an NSM sets: 1 (algorithm), -35 (ES384)
        "protected_header": f"{PROTECTED_ES384[1:2].hex()}: {PROTECTED_ES384[2:].hex()}",
        "unprotected_header": "",
        "payload": {
            "module_id": document.module_id,
            "digest": "SHA384",
            "timestamp": str(document.timestamp_ms),
            "PCRs": pcr_text(document.pcrs),
            "certificate": document.certificate.hex(),
            "ca_bundle": ", ".join(certificate.hex() for certificate in document.cabundle),
            "public_key": _hex(document.public_key),
            "user_data": None if document.user_data is None else document.user_data.decode("utf-8", "replace"),
            "nonce": _hex(document.nonce),
        },
        "signature": document.envelope.signature.hex(),
    }


def _hex(value: bytes | None) -> str | None:
    return None if value is None else value.hex()
