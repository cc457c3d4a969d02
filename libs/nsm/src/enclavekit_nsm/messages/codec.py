# SPDX-License-Identifier: Apache-2.0
"""The CBOR of the messages, byte for byte as the AWS library writes it. Pure.

Externally tagged enums: a variant without fields is a text, one with fields is a map of one entry, its name to a map of
its fields in declaration order; definite lengths, minimal integers, absent options as null.
Source: aws-nitro-enclaves-nsm-api 0.5, src/api/mod.rs.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from typing import Any, NoReturn, TypeVar

import cbor2
from enclavekit_core.errors import LocalProtocolError, RemoteProtocolError

from enclavekit_nsm.messages.model import (
    MAX_REQUEST_BYTES,
    MAX_RESPONSE_BYTES,
    REQUESTS,
    RESPONSES,
    ErrorCode,
    ErrorResponse,
    Request,
    Response,
)

MAX_U16 = 0xFFFF
MAX_DEPTH = 3  # name -> fields -> locked_pcrs
MAX_SHOWN_CHARACTERS = 40  # of a peer's text in a message of ours

Message = TypeVar("Message")


class RequestTooLargeError(LocalProtocolError):
    """A request larger than the device takes; it would answer InputTooLarge."""


class NoTags(Mapping[int, Callable[[Any], Any]]):
    """Semantic decoders that refuse every tag: no message has one, and some cost their reader dearly.

    One tag makes cbor2 compile a regular expression, which takes seconds for a request's worth of character classes.
    """

    def __getitem__(self, tag: int) -> NoReturn:
        raise cbor2.CBORDecodeError(f"tag {tag}")

    def __iter__(self) -> Iterator[int]:
        return iter(())

    def __len__(self) -> int:
        return 1  # an empty mapping counts as none


def encode_request(request: Request) -> bytes:
    """Return the request's CBOR.

    Raises: RequestTooLargeError; LocalProtocolError for an index or range that is no u16.
    """
    for name in ("index", "range"):
        if not 0 <= getattr(request, name, 0) <= MAX_U16:
            raise LocalProtocolError(f"cannot encode NSM request {request.WIRE}: {name} {getattr(request, name)}")
    data = _encode(request)
    if len(data) > MAX_REQUEST_BYTES:
        raise RequestTooLargeError(
            f"cannot encode NSM request: {len(data)} bytes, the device takes {MAX_REQUEST_BYTES}"
        )
    return data


def encode_response(response: Response) -> bytes:
    """Return the response's CBOR."""
    if isinstance(response, ErrorResponse):
        return cbor2.dumps({"Error": response.code.value})
    return _encode(response)


def _encode(message: Request | Response) -> bytes:
    names = [field.name for field in fields(message)]
    if not names:
        return cbor2.dumps(message.WIRE)
    values = {name: getattr(message, name) for name in names}
    return cbor2.dumps({message.WIRE: {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}})


def decode_request(data: bytes) -> Request:
    """Decode a request as leniently as the device: keys in any order, absent ones null, texts for byte strings.

    Raises: RemoteProtocolError for anything that is not a request.
    """
    name, body = _split(data, "NSM request", MAX_REQUEST_BYTES)
    kind = REQUESTS.get(name)
    if kind is None:
        raise RemoteProtocolError(f"cannot decode NSM request: no operation {_shorten(name)}")
    return _build(kind, body, f"NSM request {name}", lenient=True)


def decode_response(data: bytes) -> Response:
    """Decode a response. Raises RemoteProtocolError for anything that is not one."""
    name, body = _split(data, "NSM response", MAX_RESPONSE_BYTES)
    if name == "Error":
        try:
            return ErrorResponse(ErrorCode(body))
        except ValueError as exc:
            raise RemoteProtocolError(f"cannot decode NSM response: no error {_shorten(body)}") from exc
    kind = RESPONSES.get(name)
    if kind is None:
        raise RemoteProtocolError(f"cannot decode NSM response: no response {_shorten(name)}")
    return _build(kind, body, f"NSM response {name}", lenient=False)


def _shorten(value: object) -> str:
    text = repr(value)
    return text if len(text) <= MAX_SHOWN_CHARACTERS else text[:MAX_SHOWN_CHARACTERS] + "..."


def _split(data: bytes, what: str, limit: int) -> tuple[str, object]:
    """Return the variant's name and its body, None where it has none."""
    if len(data) > limit:
        raise RemoteProtocolError(f"cannot decode {what}: {len(data)} bytes, the limit is {limit}")
    stream = io.BytesIO(data)
    try:
        value = cbor2.load(
            stream,
            semantic_decoders=NoTags(),
            max_depth=MAX_DEPTH,
            allow_indefinite=False,
            allow_duplicate_keys=False,
            strict_hashable_types=True,
        )
    except (cbor2.CBORDecodeError, ValueError) as exc:
        raise RemoteProtocolError(f"cannot decode {what}: not CBOR of its kind: {exc}") from exc
    if stream.read(1):
        raise RemoteProtocolError(f"cannot decode {what}: bytes follow it")
    if isinstance(value, str):
        return value, None
    if isinstance(value, dict) and len(value) == 1:
        [(name, body)] = value.items()
        if isinstance(name, str):
            return name, body
    raise RemoteProtocolError(f"cannot decode {what}: neither a name nor a map of one")


def _build(kind: type[Message], body: object, what: str, *, lenient: bool) -> Message:
    expected = {field.name: str(field.type) for field in fields(kind)}  # type: ignore[arg-type]  # all are dataclasses
    if not expected:
        if body is not None and not (lenient and body == {}):
            raise RemoteProtocolError(f"cannot decode {what}: it has no fields")
        return kind()
    if not isinstance(body, Mapping):
        raise RemoteProtocolError(f"cannot decode {what}: its fields are missing")
    if not lenient and set(body) - set(expected):
        raise RemoteProtocolError(f"cannot decode {what}: it has other fields than {', '.join(expected)}")
    return kind(**{name: _value(body.get(name), wanted, what, name, lenient) for name, wanted in expected.items()})


def _value(value: Any, wanted: str, what: str, name: str, lenient: bool) -> Any:
    match wanted:
        case "int":
            good = type(value) is int and 0 <= value <= MAX_U16
        case "bool":
            good = type(value) is bool
        case "str":
            good = isinstance(value, str)
        case "tuple[int, ...]":
            good = isinstance(value, list | tuple) and all(type(item) is int and 0 <= item <= MAX_U16 for item in value)
            value = tuple(value) if good else value
        case _:
            if lenient and isinstance(value, str):
                value = value.encode()
            good = isinstance(value, bytes) or (value is None and "None" in wanted)
    if not good:
        raise RemoteProtocolError(f"cannot decode {what}: {name} is not {wanted}")
    return value
