# SPDX-License-Identifier: Apache-2.0
"""What the bus says about a file beside its hash: one JSON object per file in a bucket of its own. Pure.

    {"sha3_512":"<128 hex digits>","size":1234,"mtime_ns":1700000000000000000,"generation":1700000000000042}

The key is that of the hash (`bus.key_of_path`). Hash and record are two messages: a record whose `sha3_512` is not the
value in `fs_hashes` belongs to a content that the other bucket does not have yet, or no longer.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from enclavekit_core.bus import HASH_BYTES
from enclavekit_core.errors import RemoteProtocolError

MAX_RECORD_BYTES = 512  # 128 digits of hash, three numbers of at most 20, names
_NUMBERS = ("size", "mtime_ns", "generation")


@dataclass(frozen=True, slots=True)
class FileRecord:
    digest: bytes
    """SHA3-512 of the content, 64 bytes."""
    size_bytes: int
    mtime_ns: int
    """As the file system says; whoever may write to the file may set it."""
    generation: int
    """Rises with every change of the file that was seen, over restarts too while the clock does not go back."""


def encode_record(record: FileRecord) -> bytes:
    """Return the record as it is stored."""
    numbers = (record.size_bytes, record.mtime_ns, record.generation)
    fields = {"sha3_512": record.digest.hex(), **dict(zip(_NUMBERS, numbers, strict=True))}
    return json.dumps(fields, separators=(",", ":")).encode("ascii")


def decode_record(data: bytes) -> FileRecord:
    """Return the record in `data`; fields that are not known are passed over. Raises RemoteProtocolError."""
    if len(data) > MAX_RECORD_BYTES:
        raise RemoteProtocolError(f"cannot read file record of {len(data)} bytes: it is too long")
    try:
        fields = json.loads(data)
        digest = bytes.fromhex(fields["sha3_512"])
        size_bytes, mtime_ns, generation = (fields[name] for name in _NUMBERS)
    except (ValueError, KeyError, TypeError, RecursionError) as exc:
        raise RemoteProtocolError("cannot read file record: it is not one") from exc
    if len(digest) != HASH_BYTES or any(type(number) is not int for number in (size_bytes, mtime_ns, generation)):
        raise RemoteProtocolError("cannot read file record: its hash or one of its numbers is none")
    return FileRecord(digest, size_bytes, mtime_ns, generation)
