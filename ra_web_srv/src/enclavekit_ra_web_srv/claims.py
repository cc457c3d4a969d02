# SPDX-License-Identifier: Apache-2.0
"""What is said about a file: the input of its VRF proof, and the `user_data` of its document. Pure.

    alpha       {"file_path":"/data/report.txt","sha3_hash":"<128 hex digits>"}
    user_data   {"file_path":"/data/report.txt","sha3_hash":"...","vrf_proof":"<hex>","vrf_cipher_suite":"<name>"}

Compact JSON, keys in this order, no escapes but those that JSON requires, as the Rust ra-web-srv writes both. A path
that is not UTF-8, or with which `user_data` would be longer than every verifier accepts, goes in by its digest, as
"file_path_sha3_256" in place of "file_path"; in alpha, which has no limit, only one that is not UTF-8.
"""

from __future__ import annotations

import hashlib
import json

MAX_USER_DATA_BYTES = 512  # AWS's validation rules; the NSM itself takes 1024


def encode_alpha(path: bytes, digest: bytes) -> bytes:
    """Return the VRF's input for the file at `path` whose content has the SHA3-512 `digest`."""
    return _encode({**_name(path), "sha3_hash": digest.hex()})


def encode_file_claim(path: bytes, digest: bytes, proof: bytes, suite: str) -> bytes:
    """Return the `user_data` for a file, at most MAX_USER_DATA_BYTES.

    Args:
        proof: of the VRF over `encode_alpha` of the same, at most 81 bytes.
        suite: name of its cipher suite, at most 40 characters.
    """
    rest = {"sha3_hash": digest.hex(), "vrf_proof": proof.hex(), "vrf_cipher_suite": suite}
    claim = _encode({**_name(path), **rest})
    return claim if len(claim) <= MAX_USER_DATA_BYTES else _encode({**_digest(path), **rest})


def _name(path: bytes) -> dict[str, str]:
    try:
        return {"file_path": path.decode("utf-8")}
    except UnicodeDecodeError:
        return _digest(path)


def _digest(path: bytes) -> dict[str, str]:
    return {"file_path_sha3_256": hashlib.sha3_256(path).hexdigest()}


def _encode(fields: dict[str, str]) -> bytes:
    return json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
