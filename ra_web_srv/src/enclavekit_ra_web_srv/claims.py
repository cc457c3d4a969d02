# SPDX-License-Identifier: Apache-2.0
"""What a document says about a file, in `user_data`. Pure.

    {"file_path":"/data/report.txt","sha3_hash":"<128 hex digits>"}
    {"file_path_sha3_512":"<128 hex digits>","sha3_hash":"<128 hex digits>"}

The second form is for paths that would make it longer than every verifier accepts, or that are not UTF-8; it holds the
hash of the path's bytes. Compact JSON, keys in this order, no escapes but those that JSON requires.
"""

from __future__ import annotations

import hashlib
import json

MAX_USER_DATA_BYTES = 512  # AWS's validation rules; the NSM itself takes 1024


def encode_file_claim(path: bytes, digest: bytes) -> bytes:
    """Return the `user_data` for the file at `path` whose content has the SHA3-512 `digest`."""
    try:
        claim = _encode({"file_path": path.decode("utf-8"), "sha3_hash": digest.hex()})
    except UnicodeDecodeError:
        claim = b""
    if claim and len(claim) <= MAX_USER_DATA_BYTES:
        return claim
    return _encode({"file_path_sha3_512": hashlib.sha3_512(path).hexdigest(), "sha3_hash": digest.hex()})


def _encode(fields: dict[str, str]) -> bytes:
    return json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
