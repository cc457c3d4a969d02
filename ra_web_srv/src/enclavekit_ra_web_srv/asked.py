# SPDX-License-Identifier: Apache-2.0
"""What clients send, as types: requests are checked by them, and the OpenAPI document is made of them. Pure."""

from __future__ import annotations

from typing import Annotated

from enclavekit_core.bus import MAX_PATH_BYTES
from msgspec import UNSET, Meta, Struct, UnsetType

from enclavekit_ra_web_srv.views import DEFAULT_VIEW

MAX_NONCE_BYTES = 64  # the challenge of a verifier is 20 to 32 bytes; the NSM would take 1024
MAX_PAGE, MAX_DOCUMENT_PAGE, DEFAULT_PAGE = 1000, 100, 100
MAX_RANDOM_BYTES = 4096  # sixteen calls of the NSM, one after the other
MAX_HEX_DOCUMENT = 2 * 16512  # the largest COSE_Sign1 that a verifier takes
END = r"$(?!\n)"  # Python's `$` also matches before a last line break, that of JSON Schema does not
HEX = r"^([0-9a-fA-F]{2})+" + END

Path = Annotated[str, Meta(min_length=1, max_length=MAX_PATH_BYTES, description="absolute path in the enclave")]
Nonce = Annotated[
    str, Meta(pattern=HEX, max_length=2 * MAX_NONCE_BYTES, description=f"1 to {MAX_NONCE_BYTES} bytes in hex")
]
Root = Annotated[str, Meta(pattern=r"^[0-9a-f]{128}" + END, description="root of a manifest")]
HexDocument = Annotated[str, Meta(pattern=HEX, max_length=MAX_HEX_DOCUMENT, description="COSE_Sign1 in hex")]
Page = Annotated[int, Meta(ge=1, le=MAX_PAGE)]
View = Annotated[str, Meta(max_length=40)]


class Nothing(Struct):
    """No field."""


class FileQuery(Struct):
    path: Path


class ReadyQuery(Struct):
    path: Path | UnsetType = UNSET


class DocumentQuery(Struct):
    path: Path
    view: View = DEFAULT_VIEW
    nonce: Nonce | UnsetType = UNSET


class ListQuery(Struct):
    path: Path
    """A file, or a directory for all that is in it at any depth."""
    after: Annotated[str, Meta(max_length=MAX_PATH_BYTES)] = ""
    """Where the page before ended: its `next`."""
    limit: Page = DEFAULT_PAGE


class DocumentListQuery(Struct):
    path: Path
    view: View = DEFAULT_VIEW
    after: Annotated[str, Meta(max_length=MAX_PATH_BYTES)] = ""
    limit: Annotated[int, Meta(ge=1, le=MAX_DOCUMENT_PAGE)] = DEFAULT_PAGE


class NonceQuery(Struct):
    nonce: Nonce


class KeyQuery(Struct):
    view: View = "hex"
    fmt: View = "pem"


class RandomQuery(Struct):
    length: Annotated[int, Meta(ge=1, le=MAX_RANDOM_BYTES)] = 512


class ManifestQuery(Struct):
    path: Path = "/"
    root: Root | UnsetType = UNSET
    after: Annotated[str, Meta(max_length=MAX_PATH_BYTES)] = ""
    limit: Page = MAX_PAGE
    nonce: Nonce | UnsetType = UNSET


class ManifestProofQuery(Struct):
    path: Path
    root: Root | UnsetType = UNSET


class GenerateBody(Struct, forbid_unknown_fields=True):
    path: Path


class PcrsBody(Struct, forbid_unknown_fields=True):
    pcrs: Annotated[str, Meta(max_length=8192, description="`0: hex, 1: hex, ...`: every locked register")]


class HashBody(Struct, forbid_unknown_fields=True):
    file_path: Path
    sha3_hash: Annotated[str, Meta(pattern=r"^[0-9a-fA-F]{128}" + END)]


class ProofBody(Struct, forbid_unknown_fields=True):
    user_data: Annotated[str, Meta(pattern=HEX, max_length=2048)]
    public_key: Annotated[str, Meta(pattern=HEX, max_length=66)]


class DocumentBody(Struct, forbid_unknown_fields=True):
    cose_doc_bytes: HexDocument
