# SPDX-License-Identifier: Apache-2.0
"""What clients send, checked. Pure."""

from __future__ import annotations

import json
import os
import re
from urllib.parse import parse_qsl

import msgspec
from enclavekit_core.errors import InputError

from enclavekit_ra_web_srv.views import DEFAULT_VIEW, VIEWS

MAX_QUERY_FIELDS = 16
MAX_NONCE_BYTES = 64  # the challenge of a verifier is 20 to 32 bytes; the NSM would take 1024
_NONCE = re.compile(rf"(?:[0-9a-fA-F]{{2}}){{1,{MAX_NONCE_BYTES}}}")


class GenerateRequest(msgspec.Struct, forbid_unknown_fields=True):
    path: str


def parse_query(raw: str) -> dict[str, str]:
    """Return the fields of a query string as sent; bytes that are not UTF-8 become lone surrogates.

    Raises: InputError for one that is repeated, or too many.
    """
    try:
        pairs = parse_qsl(raw, keep_blank_values=True, errors="surrogateescape", max_num_fields=MAX_QUERY_FIELDS)
    except ValueError as exc:
        raise InputError("read", "query", f"it has more than {MAX_QUERY_FIELDS} fields") from exc
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise InputError("read", "query", "a field is repeated")
    return fields


def parse_path(fields: dict[str, str]) -> bytes:
    """Return the `path` field. Raises InputError."""
    return _path_bytes(fields.get("path", ""))


def parse_generate(body: bytes) -> bytes:
    """Return the path of the body of `POST /generate`. Raises InputError."""
    try:
        # not msgspec's parser: it refuses escaped lone surrogates, which is how we write bytes that are no UTF-8
        return _path_bytes(msgspec.convert(json.loads(body), GenerateRequest).path)
    except (ValueError, RecursionError, msgspec.ValidationError) as exc:
        raise InputError("read", "request body", str(exc)) from exc


def parse_nonce(fields: dict[str, str], *, required: bool) -> bytes | None:
    """Return the `nonce` field, 1..MAX_NONCE_BYTES bytes in hex. Raises InputError."""
    text = fields.get("nonce")
    if text is None and not required:
        return None
    if text is None or not _NONCE.fullmatch(text):
        raise InputError("use", "'nonce' parameter", f"it is not 1 to {MAX_NONCE_BYTES} bytes in hex")
    return bytes.fromhex(text)


def parse_view(fields: dict[str, str]) -> str:
    """Return the `view` field. Raises InputError that names those there are."""
    view = fields.get("view", DEFAULT_VIEW)
    if view not in VIEWS:
        raise InputError("use", "'view' parameter", f"it is none of {', '.join(VIEWS)}")
    return view


def accepts_cbor(accept: str) -> bool:
    """Whether the `Accept` header names application/cbor."""
    return any(part.partition(";")[0].strip().lower() == "application/cbor" for part in accept.split(","))


def _path_bytes(text: str) -> bytes:
    if not text:
        raise InputError("use", "'path' parameter", "it is missing or empty")
    try:
        return os.fsencode(text)
    except UnicodeEncodeError as exc:
        raise InputError("use", "'path' parameter", "it is not text") from exc
