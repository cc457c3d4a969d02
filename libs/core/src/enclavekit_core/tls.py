# SPDX-License-Identifier: Apache-2.0
"""TLS 1.3 contexts for channels whose server is known by its attested key, not by a certificate authority."""

from __future__ import annotations

import os
import ssl


def server_context(certificate_pem: bytes, key_pem: bytes) -> ssl.SSLContext:
    """Return a TLS 1.3 server context for a key that exists in memory only."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    # load_cert_chain only reads files: a memfd is one that no other process can open and that dies with us
    handle = os.memfd_create("tls-identity", os.MFD_CLOEXEC)
    try:
        os.write(handle, certificate_pem + key_pem)
        context.load_cert_chain(f"/proc/self/fd/{handle}")
    finally:
        os.close(handle)
    return context


def attested_client_context() -> ssl.SSLContext:
    """Return a TLS 1.3 client context that authenticates nobody by itself.

    The caller must check the peer's key (`peer_certificate_der`) against attestation evidence before it sends a byte.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def peer_certificate_der(tls: ssl.SSLObject | ssl.SSLSocket) -> bytes:
    """Return the peer's certificate in DER. Raises ssl.SSLError if it sent none."""
    der = tls.getpeercert(binary_form=True)
    if not der:
        raise ssl.SSLError("the peer sent no certificate")
    return der
