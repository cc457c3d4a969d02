# SPDX-License-Identifier: Apache-2.0
"""Attestation documents: about this server's TLS key, and about files."""

from __future__ import annotations

import collections
import secrets
import time

from enclavekit_attestation.binding import TlsIdentity, encode_binding
from enclavekit_attestation.document import parse_document
from enclavekit_core.bus import SERVICE_RA

from enclavekit_ra_web_srv.claims import encode_file_claim
from enclavekit_ra_web_srv.nsm_worker import NsmWorker

NONCE_BYTES = 32
MAX_AGE_S = 60.0  # of a document that is handed out again; the leaf certificate lives for hours
MAX_KEPT = 1000  # 5 KB each


class Evidence:
    """Makes documents; remembers those about files that nobody gave a nonce for."""

    def __init__(self, nsm: NsmWorker, identity: TlsIdentity) -> None:
        self._nsm, self._identity = nsm, identity
        self._kept: collections.OrderedDict[tuple[bytes, bytes], tuple[float, bytes]] = collections.OrderedDict()

    async def of_tls_key(self, nonce: bytes) -> bytes:
        """Return a fresh document that binds our TLS key to `nonce`. Raises NsmBusyError, DeviceError."""
        user_data = encode_binding(SERVICE_RA, self._identity.spki_sha256)
        public_key = self._identity.spki_der
        return await self._nsm.call(lambda nsm: nsm.attestation(user_data, nonce, public_key))

    async def of_file(self, path: bytes, digest: bytes, nonce: bytes | None) -> bytes:
        """Return a document about a file: fresh with the caller's nonce, at most MAX_AGE_S old with a random one.

        Raises: NsmBusyError, DeviceError.
        """
        key = (path, digest)
        if nonce is None:
            made_at_s, document = self._kept.get(key, (0.0, b""))
            if document and time.monotonic() - made_at_s < MAX_AGE_S:
                return document
        chosen = nonce if nonce is not None else secrets.token_bytes(NONCE_BYTES)
        document = await self._nsm.call(lambda nsm: nsm.attestation(encode_file_claim(path, digest), chosen))
        if nonce is None:
            self._kept[key] = (time.monotonic(), document)
            self._kept.move_to_end(key)
            while len(self._kept) > MAX_KEPT:
                self._kept.popitem(last=False)
        return document

    async def pcrs(self) -> dict[int, bytes]:
        """Return the locked PCRs as a fresh document states them. Raises NsmBusyError, DeviceError."""
        nonce = secrets.token_bytes(NONCE_BYTES)
        return parse_document(await self._nsm.call(lambda nsm: nsm.attestation(nonce=nonce))).pcrs
