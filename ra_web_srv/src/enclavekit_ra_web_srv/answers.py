# SPDX-License-Identifier: Apache-2.0
"""What clients get, as types; the OpenAPI document is made of them. Pure.

Names and order of the fields are those of the Rust ra-web-srv; what it does not have comes after.
"""

from __future__ import annotations

from typing import Any

from msgspec import Struct


class Error(Struct):
    error: str


class Progress(Struct):
    file_path: str
    status: str


class NotFound(Struct):
    file_path: str
    status: str
    error: str


class Generated(Struct):
    status: str
    path: str
    job: str


class JobStatus(Struct):
    job: str
    path: str
    state: str
    """`running`, `done` or `failed`."""
    hashed: int
    failed: int
    error: str | None


class FileHashAnswer(Struct):
    file_path: str
    sha3_hash: str


class ReadyFile(Struct):
    file_path: str
    sha3_hash: str
    status: str


class ServiceReady(Struct):
    status: str
    """`ready` or `not ready`."""
    nsm: str
    bus: str
    manifest: str


class FileProofAnswer(Struct):
    file_path: str
    sha3_hash: str
    vrf_proof: str
    vrf_cipher_suite: str
    vrf_public_key: str


class FileDocumentAnswer(Struct):
    file_path: str
    sha3_hash: str
    vrf_proof: str
    vrf_cipher_suite: str
    att_doc: Any
    """In the form of `view`."""
    vrf_public_key: str


class FileList(Struct):
    path: str
    processing: list[str]
    """Paths that have no answer yet; ask for them again."""
    next: str | None
    """`after` of the next page; null: this is the last one."""


class Readiness(Struct):
    path: str
    ready: list[ReadyFile]
    processing: list[Progress]
    next: str | None


class Hashes(FileList, kw_only=True):
    hashes: list[FileHashAnswer]


class Proofs(FileList, kw_only=True):
    proofs: list[FileProofAnswer]


class Documents(FileList, kw_only=True):
    documents: list[FileDocumentAnswer]


class PublicKeys(Struct):
    pubkey4proofs: str
    """SubjectPublicKeyInfo of the VRF's key."""
    pubkey4docs: str
    """SubjectPublicKeyInfo of the NSM's key, which signs documents."""
    vrf_public_key: str
    """The VRF's key as `/verify_proof/` takes it, hex."""
    vrf_cipher_suite: str


class Pcrs(Struct):
    description: str
    pcrs: dict[str, str]


class NsmDescription(Struct):
    version_major: int
    version_minor: int
    version_patch: int
    module_id: str
    max_pcrs: int
    locked_pcrs: list[int]
    digest: str


class Random(Struct):
    length: int
    random_hex: str


class Echo(Struct):
    parameters: list[str]
    path: str


class Attestation(Struct):
    attestation_document: str
    """Base64."""
    tls_spki_sha256: str
    nonce: str
    vrf_public_key: str
    vrf_cipher_suite: str
    manifest_root: str | None


class ManifestFile(Struct):
    path: str
    size: int
    sha3_hash: str | None


class ManifestAnswer(Struct):
    manifest_root: str
    made_at_ms: int
    total_files: int
    files: list[ManifestFile]
    next: str | None
    attestation_document: str | None
    """Signs root, number of files and time; base64; with the first page, or whenever `nonce` is given."""


class TreeEntryAnswer(Struct):
    name: str
    kind: str
    """`file`, `directory`, `link` or `other`."""
    mode: int
    digest: str


class DirectoryAnswer(Struct):
    path: str
    entries: list[TreeEntryAnswer]


class ManifestProof(Struct):
    path: str
    manifest_root: str
    present: bool
    directories: list[DirectoryAnswer]
    """From `/` down to where the path ends, or is missing."""


class PcrVerdict(Struct):
    valid: bool
    message: str
    provided_pcrs: str
    actual_pcrs: str


class HashVerdict(Struct):
    valid: bool
    file_path: str
    provided_hash: str
    computed_hash: str
    message: str


class ProofVerdict(Struct):
    valid: bool
    message: str
    own_key: bool
    """Whether `public_key` is this server's present key."""


class DocumentVerdict(Struct):
    valid: bool
    message: str


class CertificateVerdict(Struct):
    signature_valid: bool
    time_valid: bool
    message: str
    certificate_info: str


class BundleVerdict(Struct):
    valid: bool
    message: str
    error_detail: str | None


class Health(Struct):
    status: str
    bus: str
    files_on_bus: int
    attested_ahead: int
    to_attest: int
