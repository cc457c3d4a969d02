# SPDX-License-Identifier: Apache-2.0
"""What the JSON payloads of frames hold: strict, typed both ways. Pure."""

from __future__ import annotations

from typing import Annotated, TypeVar

import msgspec
from enclavekit_core.errors import InputError, RemoteProtocolError

from enclavekit_pipeline.frames import MAX_PAYLOAD_BYTES

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


class Hello(Message, frozen=True):
    version: int
    nonce: str
    """Hex of 32 bytes, fresh for each connection."""


class Auth(Message, frozen=True):
    certificate: str
    """Base64 of the caller's certificate in DER."""
    signature: str
    """Base64; see handshake.proof_bytes for what is signed."""


class Accept(Message, frozen=True):
    name: str
    """What the enclave's list calls the caller."""


class ExecRequest(Message, frozen=True, tag="exec", tag_field="verb"):
    argv: list[str]
    stdin: bool = False
    environment: dict[str, str] = {}
    directory: str | None = None
    user: str | None = None
    """Name or `uid[:gid]`."""
    timeout_s: float | None = None
    system: bool = False


class CopyInRequest(Message, frozen=True, tag="cp-in", tag_field="verb"):
    path: str
    """Target; a directory takes the file under `name`."""
    name: str
    """The source's base name."""
    mode: Mode
    mtime_ns: Nanoseconds
    system: bool = False


class CopyOutRequest(Message, frozen=True, tag="cp-out", tag_field="verb"):
    path: str
    system: bool = False


Request = ExecRequest | CopyInRequest | CopyOutRequest


class Opened(Message, frozen=True):
    """The request is under way. For cp-out: what the file is."""

    size: Size = 0
    mode: Mode = 0
    mtime_ns: Nanoseconds = 0


class Exit(Message, frozen=True):
    status: Annotated[int, msgspec.Meta(ge=0, le=255)]
    """0..255, or 128+n if signal n ended it."""
    signal: int | None = None
    timed_out: bool = False


class Done(Message, frozen=True):
    """All of a file is there; the other side compares."""

    sha256: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
    size: Size


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


def decode_request(data: bytes) -> Request:
    """Parse and check a request. Raises RemoteProtocolError."""
    request: Request = decode_payload(Request, data)  # type: ignore[arg-type]  # msgspec takes unions
    match request:
        case ExecRequest():
            words = [*request.argv, *request.environment, *request.environment.values(), request.directory or ""]
            if not request.argv or not request.argv[0] or len(words) > MAX_WORDS:
                raise RemoteProtocolError("cannot read frame: no command, or too many words")
            if any(not name or "=" in name for name in request.environment):
                raise RemoteProtocolError("cannot read frame: an environment variable without a name")
            if request.timeout_s is not None and not 0 < request.timeout_s < 10**9:
                raise RemoteProtocolError("cannot read frame: time-out out of range")
        case CopyInRequest():
            words = [request.path, request.name]
            if "/" in request.name or request.name in ("", ".", ".."):
                raise RemoteProtocolError("cannot read frame: the name is not a file name")
        case CopyOutRequest():
            words = [request.path]
    if any("\0" in word for word in words):
        raise RemoteProtocolError("cannot read frame: NUL in a word")
    if not isinstance(request, ExecRequest) and not 0 < len(request.path) <= MAX_PATH_CHARS:
        raise RemoteProtocolError("cannot read frame: no path, or too long a path")
    return request
