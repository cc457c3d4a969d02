# SPDX-License-Identifier: Apache-2.0
"""Payloads in JSON, strict and typed both ways: what all verbs share. Pure."""

from __future__ import annotations

from typing import Annotated, TypeVar

import msgspec
from enclavekit_core.errors import InputError, RemoteProtocolError

from enclavekit_pipeline.wire.frames import MAX_PAYLOAD_BYTES

MAX_PATH_CHARS = 4096  # PATH_MAX
MAX_WORDS = 4096
MAX_MESSAGE_CHARS = 4000  # of an error; far below a frame
CODE_DENIED = "denied"  # the list says no
CODE_INPUT = "input"  # what was asked for cannot be: no such file, no such command
CODE_BUSY = "busy"
CODE_FAILED = "failed"  # anything else
MAX_I64 = 2**63 - 1
Size = Annotated[int, msgspec.Meta(ge=0, le=MAX_I64)]
Mode = Annotated[int, msgspec.Meta(ge=0, le=0o7777)]
Nanoseconds = Annotated[int, msgspec.Meta(ge=0, le=MAX_I64)]
Value = TypeVar("Value")


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of all payloads."""


class Hello(Message, frozen=True, omit_defaults=True):
    version: int
    """The newest that the caller speaks."""
    nonce: str
    """Hex of 32 bytes, fresh for each connection."""
    oldest: int | None = None
    """The oldest that it speaks; absent: `version`, too."""


class Auth(Message, frozen=True):
    certificate: str
    """Base64 of the caller's certificate in DER."""
    signature: str
    """Base64; see handshake.proof_bytes for what is signed."""


class Accept(Message, frozen=True):
    name: str
    """What the enclave's list calls the caller."""
    version: int
    """The one that both speak from here on."""


class Opened(Message, frozen=True):
    """The request is under way. For cp-out: what the file is."""

    size: Size = 0
    mode: Mode = 0
    mtime_ns: Nanoseconds = 0


class Failure(Message, frozen=True):
    code: str
    """For machines: one of CODE_*; others may come to be."""
    message: str
    """`cannot <verb> <object>: <cause>`."""

    @property
    def text(self) -> str:
        """The message, fit to be shown: an enclave that lies must not move the cursor of our terminal."""
        shown = "".join(char if char.isprintable() else "?" for char in self.message[:MAX_MESSAGE_CHARS])
        return shown or "cannot do that in the enclave: it does not say why"


def malformed(what: str) -> RemoteProtocolError:
    """Return the error for a message whose fields make no sense together."""
    return RemoteProtocolError(f"cannot read frame: {what}")


def encode_payload(message: Message) -> bytes:
    """Return JSON. Raises InputError for words that are no text or too many."""
    try:
        data = msgspec.json.encode(message)
    except UnicodeEncodeError as exc:
        raise InputError("send", ascii(exc.object)[:200], "it is not UTF-8") from exc
    if len(data) > MAX_PAYLOAD_BYTES:
        raise InputError("send", "the request", f"it has {len(data)} bytes, the limit is {MAX_PAYLOAD_BYTES}")
    return data


def decode_payload(kind: type[Value], data: bytes) -> Value:
    """Parse a payload. Raises RemoteProtocolError."""
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise RemoteProtocolError(f"cannot read frame: {str(exc)[:200]}") from exc
