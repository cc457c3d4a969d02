# SPDX-License-Identifier: Apache-2.0
"""What clients send, checked against its types. Pure."""

from __future__ import annotations

import json
import re
from typing import TypeVar
from urllib.parse import parse_qsl

import msgspec
from enclavekit_core.errors import InputError

MAX_QUERY_FIELDS = 16
MISSING = re.compile(r"Object missing required field `(\w+)`|Expected `str` of length >= 1 - at `\$\.(path)`")

Struct = TypeVar("Struct", bound=msgspec.Struct)


def parse_query(raw: str, kind: type[Struct]) -> Struct:
    """Return the query string as `kind`; bytes that are not UTF-8 become lone surrogates, unknown fields are ignored.

    Raises: InputError for a field that is missing, malformed or repeated, or too many.
    """
    try:
        pairs = parse_qsl(raw, keep_blank_values=True, errors="surrogateescape", max_num_fields=MAX_QUERY_FIELDS)
    except ValueError as exc:
        raise InputError("read", "query", f"it has more than {MAX_QUERY_FIELDS} fields") from exc
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise InputError("read", "query", "a field is repeated")
    try:
        return msgspec.convert(fields, kind, strict=False)
    except msgspec.ValidationError as exc:
        raise _refuse("parameter", str(exc)) from exc


def parse_body(body: bytes, kind: type[Struct]) -> Struct:
    """Return a JSON body as `kind`. Raises InputError."""
    try:
        # not msgspec's parser: it refuses escaped lone surrogates, which is how we write bytes that are no UTF-8
        return msgspec.convert(json.loads(body), kind)
    except msgspec.ValidationError as exc:
        raise _refuse("field", str(exc)) from exc
    except (ValueError, RecursionError) as exc:
        raise InputError("read", "request body", "it is not JSON") from exc


def path_bytes(text: str) -> bytes:
    """Return the bytes of a path that came as text. Raises InputError for one that no file can have."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as exc:
        raise InputError("use", "path", "it is not text") from exc


def accepts_cbor(accept: str) -> bool:
    """Whether the `Accept` header names application/cbor."""
    return any(part.partition(";")[0].strip().lower() == "application/cbor" for part in accept.split(","))


def _refuse(what: str, reason: str) -> InputError:
    missing = MISSING.search(reason)
    if missing is not None:
        return InputError("use", f"'{missing[1] or missing[2]}' {what}", "it is missing or empty")
    reason, _, where = reason.partition(" - at `$")
    name = where.strip("`.")
    return InputError("use", f"'{name}' {what}" if name else "request", reason[:1].lower() + reason[1:])
