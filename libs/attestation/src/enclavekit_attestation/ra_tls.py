# SPDX-License-Identifier: Apache-2.0
"""Evidence inside the TLS certificate (RA-TLS): a client that sees the certificate needs to ask for nothing.

The document is the value of a non-critical X.509 extension, as it is: COSE_Sign1 bytes without a DER wrapper of their
own. It binds the certificate's key like any other (`binding`), but no nonce of the client: it is as old as its
timestamp says, and the server makes a new certificate of the same key every few minutes. Where freshness matters, ask
with a nonce.

There is no registered OID for Nitro documents; this one is of the arc for UUIDs (X.667), which needs no registration:
uuid5(NAMESPACE_URL, "enclavekit/ra-tls/nitro/1").
"""

from __future__ import annotations

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from enclavekit_core.errors import VerificationError

from enclavekit_attestation.binding import TlsIdentity, self_signed

OID = x509.ObjectIdentifier("2.25.183587865731266916543054570927095228216")


def make_certificate(identity: TlsIdentity, common_name: str, document: bytes) -> bytes:
    """Return a certificate (PEM) of the identity's key that holds `document`."""
    key = serialization.load_pem_private_key(identity.key_pem, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return self_signed(key, common_name, x509.UnrecognizedExtension(OID, document))


def document_in_certificate(certificate_der: bytes) -> bytes:
    """Return the document in a certificate, verified by nobody. Raises VerificationError if there is none."""
    try:
        certificate = x509.load_der_x509_certificate(certificate_der)
        extension = certificate.extensions.get_extension_for_oid(OID)
    except Exception as exc:  # the peer's bytes: whichever of its exceptions the parser picks, there is no evidence
        raise VerificationError("attestation document", "the TLS certificate holds none") from exc
    assert isinstance(extension.value, x509.UnrecognizedExtension)
    return extension.value.value
