# SPDX-License-Identifier: Apache-2.0
"""Attestation documents: about this server's keys and state, about files, about the manifest."""

from __future__ import annotations

import json
import secrets
from collections.abc import Hashable

from enclavekit_attestation.binding import TlsIdentity, encode_binding
from enclavekit_attestation.document import AttestationDocument, parse_document
from enclavekit_core.bus import SERVICE_RA

from enclavekit_ra_web_srv.claims import encode_file_claim
from enclavekit_ra_web_srv.nsm_worker import OURSELVES, NsmWorker
from enclavekit_ra_web_srv.record_check import expiry_ms
from enclavekit_ra_web_srv.record_store import RecordStore
from enclavekit_ra_web_srv.records import Record
from enclavekit_ra_web_srv.vrf_key import FileProof, VrfKey

NONCE_BYTES = 32
MANIFEST_PURPOSE = "enclavekit/manifest/1"


class Evidence:
    """Makes documents; those about files that nobody gave a nonce for are kept. All calls may raise QueueFullError,
    ClientFullError, NsmTimeoutError and DeviceError."""

    def __init__(self, nsm: NsmWorker, identity: TlsIdentity, vrf: VrfKey, records: RecordStore) -> None:
        self._nsm, self._identity, self._vrf, self._records = nsm, identity, vrf, records

    async def of_tls_key(self, nonce: bytes | None, client: Hashable = OURSELVES, root: bytes | None = None) -> bytes:
        """Return a fresh document that binds TLS key, VRF key and `root`, that of the manifest, to `nonce`."""
        state = {"vrf_cipher_suite": self._vrf.suite.name, "vrf_public_key": self._vrf.public_key.hex()}
        if root is not None:
            state["manifest_root"] = root.hex()
        user_data = encode_binding(SERVICE_RA, self._identity.spki_sha256, state)
        public_key = self._identity.spki_der
        return await self._nsm.call(lambda nsm: nsm.attestation(user_data, nonce, public_key), client)

    async def proof_of_file(self, path: bytes, digest: bytes) -> FileProof:
        """Return the proof that goes with the file's record, if that is in memory; else the present key's."""
        record = self._records.peek(path, digest)
        return record.proof if record is not None else await self._vrf.prove(path, digest)

    async def of_file(self, path: bytes, digest: bytes, nonce: bytes | None, client: Hashable = OURSELVES) -> Record:
        """Return proof and document of a file: fresh with the caller's nonce; else one of a random nonce, whose
        certificates are valid for a while yet."""
        if nonce is None:
            found = await self._records.find(path, digest)
            if found is not None:
                return found
        made = await self._make(path, digest, nonce or secrets.token_bytes(NONCE_BYTES), client)
        if nonce is None:
            self._records.put(made)
        return made

    async def of_manifest(
        self, root: bytes, files: int, made_at_ms: int, nonce: bytes | None, client: Hashable
    ) -> bytes:
        """Return a fresh document that signs a manifest."""
        fields = {"purpose": MANIFEST_PURPOSE, "manifest_root": root.hex(), "files": files, "made_at_ms": made_at_ms}
        user_data = json.dumps(fields, separators=(",", ":")).encode("ascii")
        chosen = nonce or secrets.token_bytes(NONCE_BYTES)
        return await self._nsm.call(lambda nsm: nsm.attestation(user_data, chosen), client)

    async def fresh(self, client: Hashable = OURSELVES) -> AttestationDocument:
        """Return a fresh document that says nothing, for what the NSM says in every document."""
        nonce = secrets.token_bytes(NONCE_BYTES)
        return parse_document(await self._nsm.call(lambda nsm: nsm.attestation(nonce=nonce), client))

    async def _make(self, path: bytes, digest: bytes, nonce: bytes, client: Hashable) -> Record:
        proof = await self._vrf.prove(path, digest)
        claim = encode_file_claim(path, digest, proof.proof, proof.suite)
        document = await self._nsm.call(lambda nsm: nsm.attestation(claim, nonce, proof.public_key), client)
        return Record(path, digest, proof, document, expiry_ms(parse_document(document)))
