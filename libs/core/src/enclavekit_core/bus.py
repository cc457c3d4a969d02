# SPDX-License-Identifier: Apache-2.0
"""The names on the bus: buckets, accounts and the keys under which a file's hash is stored. Pure.

A hash is stored as 64 raw bytes (SHA3-512) under a key made of the file's absolute path:

    verbatim   /data/report.txt      the path is a legal NATS key as it is; what the Rust fs-monitor writes
    escaped    =/data/my=20file      "=", then the path with every other byte as "=" and two upper-case hex digits

A path begins with "/" and an escaped key with "=", so that the two never collide, although "=" is legal in both. Each
path has one key and each key one path: what `key_of_path` would not have made, `path_of_key` refuses.

Source: NATS ADR-8 (keys match `[-/_=.a-zA-Z0-9]+`); NATS subjects (tokens between dots are not empty).
"""

from __future__ import annotations

import re

from enclavekit_core.errors import InputError, RemoteProtocolError

BUCKET_HASHES = "fs_hashes"
BUCKET_RECORDS = "fs_records"  # what `file_record` says, under the same keys
BUCKET_DOCUMENTS = "fs_att_docs"
SERVICE_FS_MONITOR = "fs-monitor"
SERVICE_RA = "ra-web-srv"

HASH_BYTES = 64  # SHA3-512
MAX_PATH_BYTES = 4096  # PATH_MAX of Linux
MAX_KEY_CHARS = 1 + 3 * MAX_PATH_BYTES

_LEGAL_KEY = re.compile(rb"[-/_=.a-zA-Z0-9]+")
_TO_ESCAPE = re.compile(rb"[^-/_.a-zA-Z0-9]")
_ESCAPE = re.compile(r"=([0-9A-F]{2})")


def key_of_path(path: bytes) -> str:
    """Return the key of an absolute path. Raises InputError if no file can have that path."""
    if not path.startswith(b"/") or b"\0" in path or len(path) > MAX_PATH_BYTES:
        raise InputError("make a bus key of", repr(path)[:100], "it is not an absolute path")
    if _LEGAL_KEY.fullmatch(path) and _has_no_empty_token(path):
        return path.decode("ascii")
    escaped = _TO_ESCAPE.sub(lambda found: b"=%02X" % found[0][0], path)
    if not _has_no_empty_token(escaped):
        escaped = escaped.replace(b".", b"=2E")
    return "=" + escaped.decode("ascii")


def path_of_key(key: str) -> bytes:
    """Return the path of a key. Raises RemoteProtocolError for a key that `key_of_path` does not make."""
    if len(key) > MAX_KEY_CHARS:
        raise RemoteProtocolError(f"cannot read bus key of {len(key)} characters: it is too long")
    try:
        path = key.encode("ascii")
        if key.startswith("="):
            path = _ESCAPE.sub(lambda found: chr(int(found[1], 16)), key[1:]).encode("latin-1")
        canonical = key_of_path(path) == key
    except (UnicodeEncodeError, InputError):
        canonical = False
    if not canonical:
        raise RemoteProtocolError(f"cannot read bus key {key[:100]!r}: it is not the key of a path")
    return path


def _has_no_empty_token(path: bytes) -> bool:
    """Whether dots in `path` leave no empty token in the subject; a path begins with "/", never with a dot."""
    return b".." not in path and not path.endswith(b".")
