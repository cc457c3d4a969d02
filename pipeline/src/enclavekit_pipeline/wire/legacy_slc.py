# SPDX-License-Identifier: Apache-2.0
"""The Rust framework's pipeline protocol ("secure local channel"), which is neither secure nor authenticated. Pure.

One request per connection, no handshake, no version, no acknowledgement and no way to say that something failed:

    integer   u64 little-endian, then one zero byte: 9 bytes
    text      integer (its length), then UTF-8
    file      integer (its size), then the bytes

    id  request          the client sends after the id             the listener answers
    0   run              text: command                             text: JSON {"stdout", "stderr", "rc"}
    1   fetch a file     text: path                                file
    2   store a file     text: path, file                          nothing
    3   run, no wait     text: command                             as 0, at once
    4   store a tree     text: path, integer, each: text, file     nothing
    5   fetch a tree     text: path                                integer, each: text, file

Source: upstream's pipeline/src/vsock.rs and lib.rs, crate 0.12.0.
"""

from __future__ import annotations

import enum
import struct
from typing import Annotated

import msgspec
from enclavekit_core.errors import InputError, RemoteProtocolError

INTEGER = struct.Struct("<Qx")
MAX_TEXT_BYTES = 8192  # what the Rust listener has room for; more crashes it
MAX_RESULT_BYTES = 64 * 1024 * 1024  # the JSON of what a command wrote
MAX_OUTPUT_BYTES = 4 * 1024 * 1024  # kept of each of its streams; a byte may become six of JSON
MAX_FILES = 1_000_000  # of a tree
MAX_FILE_BYTES = 2**44


class Request(enum.IntEnum):
    RUN, FETCH_FILE, STORE_FILE, RUN_NO_WAIT, STORE_TREE, FETCH_TREE = range(6)


class CommandResult(msgspec.Struct, frozen=True, kw_only=True):
    stdout: str
    stderr: str
    rc: Annotated[int, msgspec.Meta(ge=-(2**31), lt=2**31)] | None
    """None: a signal ended it."""


def encode_integer(value: int) -> bytes:
    return INTEGER.pack(value)


def decode_integer(data: bytes, limit: int, what: str) -> int:
    """Return the number in 9 bytes. Raises RemoteProtocolError if it is more than `limit`."""
    value = int(INTEGER.unpack(data)[0])
    if value > limit:
        raise RemoteProtocolError(f"cannot read {what}: {value} is more than {limit}")
    return value


def encode_text(text: str) -> bytes:
    """Raises InputError if it is no text, or longer than a Rust listener survives."""
    try:
        data = text.encode()
    except UnicodeEncodeError as exc:
        raise InputError("send", ascii(text)[:200], "it is not UTF-8") from exc
    if len(data) > MAX_TEXT_BYTES:
        raise InputError("send", repr(text[:50]), f"it has {len(data)} bytes, the old protocol takes {MAX_TEXT_BYTES}")
    return encode_integer(len(data)) + data


def decode_text(data: bytes, what: str) -> str:
    """Raises RemoteProtocolError."""
    try:
        text = data.decode()
    except UnicodeDecodeError as exc:
        raise RemoteProtocolError(f"cannot read {what}: it is not UTF-8") from exc
    if "\0" in text:
        raise RemoteProtocolError(f"cannot read {what}: it holds a NUL")
    return text


def decode_request(data: bytes) -> Request:
    """Raises RemoteProtocolError."""
    return Request(decode_integer(data, max(Request), "the request's number"))


def decode_result(data: bytes) -> CommandResult:
    """Raises RemoteProtocolError."""
    try:
        return msgspec.json.decode(data, type=CommandResult)
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise RemoteProtocolError(f"cannot read the command's result: {str(exc)[:200]}") from exc


def encode_result(stdout: bytes, stderr: bytes, rc: int) -> bytes:
    """Return the whole answer to a command; what is not UTF-8 is replaced, since the protocol knows text only."""
    result = CommandResult(stdout=stdout.decode(errors="replace"), stderr=stderr.decode(errors="replace"), rc=rc)
    data = msgspec.json.encode(result)
    return encode_integer(len(data)) + data


def check_tree_name(name: str) -> list[str]:
    """Return the parts of a file's name in a tree. Raises RemoteProtocolError if it could lead anywhere else."""
    parts = name.split("/")
    if not name or any(part in ("", ".", "..") for part in parts) or len(name.encode()) > MAX_TEXT_BYTES:
        raise RemoteProtocolError(f"cannot take a file of the tree: {name[:100]!r} is no plain relative name")
    return parts
