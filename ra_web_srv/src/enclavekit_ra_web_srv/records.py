# SPDX-License-Identifier: Apache-2.0
"""A file's proof and document, and the form in which both are kept on the bus. Pure.

Bucket `fs_att_docs`, key as in `fs_hashes`, value JSON with the fields of the Rust ra-web-srv, the document in hex
instead of an array of numbers (a third of its size), and the key that the proof is by. A file that is gone has no
value: its key is deleted.

    {"file_path":"/data/f","sha3_hash":"...","vrf_proof":"...","vrf_cipher_suite":"...","vrf_public_key":"...",
     "att_doc":"<hex>"}
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from enclavekit_core.bus import HASH_BYTES
from enclavekit_core.errors import RemoteProtocolError

from enclavekit_ra_web_srv.claims import encode_file_claim
from enclavekit_ra_web_srv.vrf_key import FileProof

MAX_RECORD_BYTES = 48 * 1024  # below what the bus carries; a document has 5 KB, at most 16


@dataclass(frozen=True, slots=True)
class Record:
    path: bytes
    digest: bytes
    proof: FileProof
    document: bytes
    expires_ms: int
    """When the first certificate of the document's chain ends, milliseconds since 1970 UTC."""

    @property
    def claim(self) -> bytes:
        """What the document's `user_data` must be."""
        return encode_file_claim(self.path, self.digest, self.proof.proof, self.proof.suite)


def encode_record(record: Record) -> bytes:
    """Return the value to keep."""
    fields = {
        "file_path": record.path.decode("utf-8", "surrogateescape"),
        "sha3_hash": record.digest.hex(),
        "vrf_proof": record.proof.proof.hex(),
        "vrf_cipher_suite": record.proof.suite,
        "vrf_public_key": record.proof.public_key.hex(),
        "att_doc": record.document.hex(),
    }
    return json.dumps(fields, separators=(",", ":")).encode("ascii")


def decode_record(path: bytes, data: bytes) -> Record:
    """Return the record in `data`, of which nothing is verified yet; it expires at 0.

    Raises: RemoteProtocolError if it is none, or another file's.
    """
    if len(data) > MAX_RECORD_BYTES:
        raise RemoteProtocolError(f"cannot read record of {len(data)} bytes: it is too long")
    try:
        fields = json.loads(data)
        name = fields["file_path"].encode("utf-8", "surrogateescape")
        digest, document = bytes.fromhex(fields["sha3_hash"]), bytes.fromhex(fields["att_doc"])
        proof, key = bytes.fromhex(fields["vrf_proof"]), bytes.fromhex(fields["vrf_public_key"])
        suite = fields["vrf_cipher_suite"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
        raise RemoteProtocolError("cannot read record: it is not one") from exc
    if name != path or len(digest) != HASH_BYTES or not isinstance(suite, str):
        raise RemoteProtocolError("cannot read record: it is another file's, or malformed")
    return Record(path, digest, FileProof(proof, suite, key), document, 0)
