# SPDX-License-Identifier: Apache-2.0
"""The attested way to PID 1, inside TLS 1.3, as messages: evidence first, then the caller, then one request. Pure.

    client                                    gateway in the enclave
    {"hello": {"version": 1, "nonce"}}    -->
                                          <-- {"evidence": {"nonce", "document"}}
    {"auth": {"certificate", "signature"}} -->
                                          <-- {"accept": {"name"}}            or {"Error": {"message"}}
    the request                           -->
                                          <-- its answers

Each is a frame of `framing`; nonces are 32 bytes in hex, the rest is base64. The document binds the client's nonce and
the TLS key for the service "initctl". The signature covers the same key and both nonces, so it is worth nothing on
another connection, to another enclave or at another time; and its context makes it worth nothing to another protocol.
"""

from __future__ import annotations

import base64
import binascii
import json

from enclavekit_core.errors import RemoteProtocolError

SERVICE = "initctl"
VERSION = 1
PORT = 9001
NONCE_BYTES = 32
PROOF_CONTEXT = b"enclavekit/initctl/1 client proof\0"
MAX_HANDSHAKE_BYTES = 64 * 1024  # a document has 5 KiB, a certificate 1 KiB


def proof_bytes(spki_sha256: bytes, client_nonce: bytes, server_nonce: bytes) -> bytes:
    """Return what the caller signs. All parts but the context have fixed lengths, so nothing can be shifted."""
    return PROOF_CONTEXT + spki_sha256 + client_nonce + server_nonce


def encode_hello(nonce: bytes) -> bytes:
    return _encode("hello", {"version": VERSION, "nonce": nonce.hex()})


def decode_hello(data: bytes) -> bytes:
    """Return the caller's nonce. Raises RemoteProtocolError, as all of these."""
    fields = _decode(data, "hello", {"version", "nonce"})
    if fields["version"] != VERSION or isinstance(fields["version"], bool):
        raise _refuse(f"only version {VERSION} is spoken here")
    return _nonce(fields["nonce"])


def encode_evidence(nonce: bytes, document: bytes) -> bytes:
    return _encode("evidence", {"nonce": nonce.hex(), "document": base64.b64encode(document).decode()})


def decode_evidence(data: bytes) -> tuple[bytes, bytes]:
    """Return the enclave's nonce and its document, unverified."""
    fields = _decode(data, "evidence", {"nonce", "document"})
    return _nonce(fields["nonce"]), _bytes(fields["document"])


def encode_auth(certificate_der: bytes, signature: bytes) -> bytes:
    fields = {"certificate": certificate_der, "signature": signature}
    return _encode("auth", {name: base64.b64encode(value).decode() for name, value in fields.items()})


def decode_auth(data: bytes) -> tuple[bytes, bytes]:
    """Return certificate and signature, unverified."""
    fields = _decode(data, "auth", {"certificate", "signature"})
    return _bytes(fields["certificate"]), _bytes(fields["signature"])


def encode_accept(name: str) -> bytes:
    return _encode("accept", {"name": name})


def decode_accept(data: bytes) -> str:
    """Return what the enclave's list calls us."""
    name = _decode(data, "accept", {"name"})["name"]
    if not isinstance(name, str):
        raise _refuse("the name is not text")
    return name


def _encode(kind: str, fields: dict[str, object]) -> bytes:
    return json.dumps({kind: fields}, separators=(",", ":")).encode()


def _decode(data: bytes, kind: str, names: set[str]) -> dict[str, object]:
    try:
        message = json.loads(data)
    except (ValueError, RecursionError) as exc:
        raise _refuse("a message is not JSON") from exc
    if isinstance(message, dict) and message.keys() == {"Error"} and isinstance(message["Error"], dict):
        raise RemoteProtocolError(str(message["Error"].get("message", "the other side gave no reason"))[:1000])
    if not isinstance(message, dict) or message.keys() != {kind}:
        raise _refuse(f"{kind} is due, and it is something else")
    fields = message[kind]
    if not isinstance(fields, dict) or fields.keys() != names:
        raise _refuse(f"the fields of {kind} are wrong")
    return fields


def _nonce(value: object) -> bytes:
    try:
        nonce = bytes.fromhex(value) if isinstance(value, str) else b""
    except ValueError:
        nonce = b""
    if len(nonce) != NONCE_BYTES:
        raise _refuse(f"the nonce is not {NONCE_BYTES} bytes in hexadecimal")
    return nonce


def _bytes(value: object) -> bytes:
    try:
        return base64.b64decode(value, validate=True) if isinstance(value, str) else b""
    except (binascii.Error, ValueError) as exc:
        raise _refuse("something is not base64") from exc


def _refuse(reason: str) -> RemoteProtocolError:
    return RemoteProtocolError(f"cannot shake hands: {reason}")
