# SPDX-License-Identifier: Apache-2.0
"""Documents and certificates as users have them: in a file or on standard input, in one of their usual forms."""

from __future__ import annotations

import base64
import binascii
import re
import sys

from enclavekit_core.errors import InputError

from enclavekit_attestation.cose import MAX_DOCUMENT_BYTES

MAX_FILE_BYTES = 4 * MAX_DOCUMENT_BYTES  # hex doubles the size; the rest is room for line ends
STDIN = "-"
TEXT = re.compile(rb"[\x09\x0a\x0d\x20-\x7e]+")
HEX = re.compile(rb"(?:0[xX])?(?:[0-9a-fA-F]{2})+")
BASE64 = re.compile(rb"[A-Za-z0-9+/_-]+={0,2}")
DER_CERTIFICATE = b"\x30\x82"  # a sequence of 256 to 65535 bytes; no text begins so
PEM = re.compile(rb"-----BEGIN CERTIFICATE-----(.+?)-----END CERTIFICATE-----", re.DOTALL)


def read_document(path: str) -> bytes:
    """Return the bytes of the document in the file `path`, `-` for standard input. Raises InputError."""
    return decode_text_form(read_input(path, "document"), path)


def read_input(path: str, kind: str) -> bytes:
    """Return the content of a small file. Raises InputError: unreadable, empty or larger than MAX_FILE_BYTES."""
    try:
        if path == STDIN:
            content = sys.stdin.buffer.read(MAX_FILE_BYTES + 1)
        else:
            with open(path, "rb") as source:
                content = source.read(MAX_FILE_BYTES + 1)
    except OSError as exc:
        raise InputError("read", f"{kind} {path}", (exc.strerror or str(exc)).lower()) from exc
    if not content:
        raise InputError("read", f"{kind} {path}", "it is empty")
    if len(content) > MAX_FILE_BYTES:
        raise InputError("read", f"{kind} {path}", f"it is larger than {MAX_FILE_BYTES} bytes")
    return content


def read_certificate(path: str) -> bytes:
    """Return the DER of the certificate in the file `path`, `-` for standard input: PEM, the first one if there are
    several, text around it allowed, as `openssl s_client` prints it; or DER. Raises InputError."""
    content = read_input(path, "certificate")
    if content.startswith(DER_CERTIFICATE):
        return content
    found = PEM.search(content)
    if found is None:
        raise InputError("read", f"certificate {path}", "it is neither PEM nor DER")
    try:
        return base64.b64decode(b"".join(found[1].split()), validate=True)
    except binascii.Error as exc:
        raise InputError("read", f"certificate {path}", "its PEM is malformed") from exc


def decode_text_form(content: bytes, name: str) -> bytes:
    """Undo hex or base64 if `content` is text; a raw document never is, it has bytes that text has not.

    Raises:
        InputError: text that is neither.
    """
    if not TEXT.fullmatch(content):
        return content
    if PEM.search(content):
        raise InputError("read", f"document {name}", "it is a certificate: --ra-tls takes the document out of it")
    packed = b"".join(content.split())
    if HEX.fullmatch(packed):
        return bytes.fromhex(packed.decode().removeprefix("0x").removeprefix("0X"))
    if BASE64.fullmatch(packed):
        padded = packed.rstrip(b"=").translate(bytes.maketrans(b"-_", b"+/"))
        try:
            return base64.b64decode(padded + b"=" * (-len(padded) % 4), validate=True)
        except binascii.Error:
            pass
    raise InputError("read", f"document {name}", "it is text, but neither hex nor base64")
