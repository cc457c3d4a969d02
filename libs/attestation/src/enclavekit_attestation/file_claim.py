# SPDX-License-Identifier: Apache-2.0
"""What a document says about a file, compared with what it should be. Pure.

    user_data   {"file_path":"/data/f","sha3_hash":"<SHA3-512, hex>","vrf_proof":"<hex>","vrf_cipher_suite":"<name>"}

A path that is not UTF-8, or too long, is named by `file_path_sha3_256` instead. The proof is a VRF's (RFC 9381) over
`{"file_path":...,"sha3_hash":...}` under the document's `public_key`; both JSON texts are compact, keys in this order.
"""

from __future__ import annotations

import hashlib
import json

from enclavekit_core.errors import VerificationError

WHAT_FILE, WHAT_PROOF = "file", "VRF proof"
NAMED, DIGESTED = "file_path", "file_path_sha3_256"


def check_file_claim(user_data: bytes | None, path: bytes, digest: bytes) -> str:
    """Check that `user_data` of a *verified* document says that the file at `path` has the SHA3-512 `digest`.

    Returns: what held, for people.
    Raises: VerificationError.
    """
    fields = _read(user_data)
    if NAMED in fields:
        if fields[NAMED].encode("utf-8", "surrogatepass") != path:
            raise VerificationError(WHAT_FILE, f"the document is about {fields[NAMED]!r:.200}")
    elif fields[DIGESTED] != hashlib.sha3_256(path).hexdigest():
        raise VerificationError(WHAT_FILE, "the document is about another path")
    if fields["sha3_hash"] != digest.hex():
        reason = "its content in the enclave is another than expected"
        raise VerificationError(WHAT_FILE, reason, expected=digest.hex(), actual=fields["sha3_hash"])
    return f"content is as expected, SHA3-512 {digest.hex()[:16]}..."


def check_file_proof(user_data: bytes | None, path: bytes, digest: bytes, public_key: bytes | None) -> str:
    """Check the VRF proof in a claim that `check_file_claim` has passed.

    Needs the package `ecvrf` with the libraries of the suite.

    Returns: what held, for people.
    Raises: VerificationError; ecvrf.MissingLibraryError, ImportError.
    """
    import ecvrf

    fields = _read(user_data)
    suite = ecvrf.SUITES.get(fields["vrf_cipher_suite"])
    if suite is None or suite.draft_05:
        raise VerificationError(WHAT_PROOF, f"its suite is {fields['vrf_cipher_suite']!r:.60}")
    alpha = _encode({**_name(path), "sha3_hash": digest.hex()})
    try:
        suite.verify(public_key or b"", alpha, bytes.fromhex(fields["vrf_proof"]))
    except ecvrf.MissingLibraryError:
        raise
    except (ecvrf.EcvrfError, ValueError) as exc:
        raise VerificationError(WHAT_PROOF, str(exc)) from exc
    return f"{suite.name}, by the attested key"


def _name(path: bytes) -> dict[str, str]:
    try:
        return {NAMED: path.decode("utf-8")}
    except UnicodeDecodeError:
        return {DIGESTED: hashlib.sha3_256(path).hexdigest()}


def _read(user_data: bytes | None) -> dict[str, str]:
    """Return the fields of a claim, which is refused in any other form than the one above."""
    try:
        fields: dict[str, str] = json.loads(user_data or b"")
        if user_data != _encode(fields) or not all(isinstance(value, str) for value in fields.values()):
            raise ValueError
    except (ValueError, RecursionError, AttributeError, TypeError) as exc:
        raise VerificationError(WHAT_FILE, "the document is about no file") from exc
    rest = ("sha3_hash", "vrf_proof", "vrf_cipher_suite")
    if tuple(fields) not in ((NAMED, *rest), (DIGESTED, *rest)):
        raise VerificationError(WHAT_FILE, "the document is about no file")
    return fields


def _encode(fields: dict[str, str]) -> bytes:
    return json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "surrogatepass")
