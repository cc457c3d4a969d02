# SPDX-License-Identifier: Apache-2.0
"""The TLS context, and the certificate in it: one key for the life of the server, and evidence that is renewed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
from collections.abc import Callable

from enclavekit_attestation.binding import TlsIdentity
from enclavekit_attestation.ra_tls import make_certificate
from enclavekit_core.bus import SERVICE_RA
from enclavekit_core.errors import ConfigError, EnclavekitError
from enclavekit_core.logs import get_logger
from enclavekit_core.tls import server_context

from enclavekit_ra_web_srv.evidence import Evidence

RENEW_EVERY_S = 120.0  # a live check takes documents of up to 300 s
FIRST_S = 1.0  # an NSM takes milliseconds
RETRY_S = 5.0  # while the NSM does not answer, or the first manifest is being made

log = get_logger("ra-web-srv")


def make_context(identity: TlsIdentity, client_ca: str | None) -> ssl.SSLContext:
    """Return a TLS 1.3 context of `identity`; clients may show certificates of `client_ca`. Raises ConfigError."""
    context = server_context(identity.certificate_pem, identity.key_pem)
    if client_ca is not None:
        try:
            context.load_verify_locations(client_ca)
        except (OSError, ssl.SSLError) as exc:
            raise ConfigError(f"client_ca {client_ca!r}", "", "it cannot be read as PEM certificates") from exc
        # optional: evidence is open to everybody, and who has a certificate has to be valid
        context.verify_mode = ssl.CERT_OPTIONAL
    return context


class CertificateRenewal:
    def __init__(
        self,
        identity: TlsIdentity,
        context: ssl.SSLContext,
        evidence: Evidence,
        manifest_root: Callable[[], bytes | None],
    ) -> None:
        self._identity, self._context, self._evidence, self._root = identity, context, evidence, manifest_root

    async def begin(self) -> None:
        """Put evidence into the certificate before the first client sees it; an NSM that takes longer is not waited
        for, since there is much to serve without it."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._renew(), FIRST_S)

    async def run(self) -> None:
        """Put fresh evidence into the certificate, until cancelled; connections that there are keep theirs."""
        while True:
            is_complete = await self._renew()
            await asyncio.sleep(RENEW_EVERY_S if is_complete else RETRY_S)

    async def _renew(self) -> bool:
        """Renew it; return whether it says all that there is to say."""
        root = self._root()
        try:
            document = await self._evidence.of_tls_key(None, root=root)
        except EnclavekitError as exc:
            log.warning("cannot renew the evidence in the certificate, trying again", cause=str(exc))
            return False
        _load(self._context, make_certificate(self._identity, SERVICE_RA, document), self._identity.key_pem)
        return root is not None


def _load(context: ssl.SSLContext, certificate_pem: bytes, key_pem: bytes) -> None:
    # load_cert_chain only reads files: a memfd is one that no other process can open and that dies with us
    handle = os.memfd_create("tls-identity", os.MFD_CLOEXEC)
    try:
        os.write(handle, certificate_pem + key_pem)
        context.load_cert_chain(f"/proc/self/fd/{handle}")
    finally:
        os.close(handle)
