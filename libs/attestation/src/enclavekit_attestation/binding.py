# SPDX-License-Identifier: Apache-2.0
"""What ties a TLS key to an attestation document: a key that lives for one boot, and its hash in `user_data`.

The enclave makes a `TlsIdentity` when it starts, asks the NSM for a document whose `user_data` is
`encode_binding(service, spki_sha256)`, and the client, once the document is verified, calls `check_binding` with the
certificate of the TLS connection it is on. The service name keeps evidence for one listener from passing for
another's. The encoding is compact JSON with the keys in this order:

    user_data = {"purpose":"enclavekit/tls/1","service":"<service>","spki_sha256":"<64 hex digits>"}

A service may bind more of its own state in the same document; then these follow, each at most once, in this order:

    "vrf_cipher_suite":"<name>","vrf_public_key":"<hex>","manifest_root":"<128 hex digits>"
"""

from __future__ import annotations

import datetime
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from enclavekit_core.errors import LocalProtocolError, VerificationError

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

PURPOSE = "enclavekit/tls/1"
MAX_SERVICE_CHARS = 64  # keeps the encoding below the 512 bytes of user_data that every verifier accepts
# what may follow the key, in this order, and what each must look like; together they stay below 512 bytes
STATE = {
    "vrf_cipher_suite": re.compile(r"[A-Za-z0-9_-]{1,40}"),
    "vrf_public_key": re.compile(r"(?:[0-9a-f]{2}){32,33}"),
    "manifest_root": re.compile(r"[0-9a-f]{128}"),
}
CERTIFICATE_LIFETIME = datetime.timedelta(days=3650)  # trust comes from evidence, so expiry must never be what ends it
CLOCK_SLACK = datetime.timedelta(days=1)  # an enclave's clock may be off at boot


@dataclass(frozen=True, slots=True)
class TlsIdentity:
    """A self-signed P-256 certificate and its key, in memory only."""

    certificate_pem: bytes
    key_pem: bytes = field(repr=False)
    spki_sha256: bytes
    """SHA-256 of `spki_der`, 32 bytes; what curl's --pinnedpubkey compares."""
    spki_der: bytes
    """SubjectPublicKeyInfo; goes into the document's `public_key`."""

    @classmethod
    def generate(cls, common_name: str) -> TlsIdentity:
        """Make a fresh key and certificate for `common_name` (1..64 characters, X.520)."""
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ec

        key = ec.generate_private_key(ec.SECP256R1())
        spki = key.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        return cls(
            certificate_pem=self_signed(key, common_name),
            key_pem=key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            ),
            spki_sha256=hashlib.sha256(spki).digest(),
            spki_der=spki,
        )


def self_signed(key: ec.EllipticCurvePrivateKey, common_name: str, *extensions: x509.ExtensionType) -> bytes:
    """Return a certificate (PEM) of `key` for `common_name`, with `extensions` that nobody has to understand."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization

    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common_name)])
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SLACK)
        .not_valid_after(now + CERTIFICATE_LIFETIME)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(common_name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    )
    for extension in extensions:
        builder = builder.add_extension(extension, critical=False)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def encode_binding(service: str, spki_sha256: bytes, state: Mapping[str, str] | None = None) -> bytes:
    """Return the `user_data` that binds a TLS key to `service`.

    Args:
        service: "pipeline", "ra-web-srv", ...: 1..MAX_SERVICE_CHARS ASCII characters.
        spki_sha256: 32 bytes.
        state: what else the document says; keys of STATE.
    Raises:
        LocalProtocolError if one of them is not so.
    """
    if not (service.isascii() and service.isprintable() and 1 <= len(service) <= MAX_SERVICE_CHARS):
        raise LocalProtocolError(
            f"cannot bind service {service!r}: its name is not 1 to {MAX_SERVICE_CHARS} ASCII characters"
        )
    if len(spki_sha256) != hashlib.sha256().digest_size:
        raise LocalProtocolError(f"cannot bind service {service!r}: {len(spki_sha256)} bytes are not a SHA-256")
    fields = {"purpose": PURPOSE, "service": service, "spki_sha256": spki_sha256.hex()}
    state = state or {}
    if unknown := set(state) - set(STATE):
        raise LocalProtocolError(f"cannot bind service {service!r}: {min(unknown)!r} is none of its state")
    for name, form in STATE.items():
        if name in state:
            if not form.fullmatch(state[name]):
                raise LocalProtocolError(f"cannot bind service {service!r}: its {name} is malformed")
            fields[name] = state[name]
    return json.dumps(fields, separators=(",", ":")).encode()


def spki_sha256_of(certificate_der: bytes) -> bytes:
    """Return the SHA-256 of a certificate's SubjectPublicKeyInfo. Raises VerificationError if it is no certificate."""
    return hashlib.sha256(_spki_of(certificate_der)).digest()


def read_binding(user_data: bytes | None, service: str) -> bytes:
    """Return the SHA-256 of the SPKI that a *verified* document binds to `service`; a client then pins that key.

    Raises: VerificationError if it is no binding, or another service's.
    """
    return _read(user_data, service)[0]


def read_state(user_data: bytes | None, service: str) -> dict[str, str]:
    """Return what a *verified* document binds beside the key, by the names of STATE.

    Raises: VerificationError if it is no binding, or another service's.
    """
    return _read(user_data, service)[1]


def _read(user_data: bytes | None, service: str) -> tuple[bytes, dict[str, str]]:
    """Return key and state. What `encode_binding` would not have written byte for byte is refused."""
    try:
        fields = json.loads(user_data or b"")
        spki_sha256 = bytes.fromhex(fields["spki_sha256"])
        state = {name: fields[name] for name in STATE if name in fields}
        if user_data == encode_binding(service, spki_sha256, state):
            return spki_sha256, state
    except (ValueError, RecursionError, LookupError, TypeError, LocalProtocolError):
        pass
    raise VerificationError("TLS binding", _explain_mismatch(user_data, service), actual=user_data)


def check_binding(
    user_data: bytes | None, service: str, certificate_der: bytes, *, public_key: bytes | None = None
) -> None:
    """Check that a verified document binds the TLS key of `certificate_der` to `service`.

    Args:
        user_data: of a *verified* document.
        certificate_der: the certificate that the TLS peer presented.
        public_key: the document's `public_key`; if it has one, it must be the same key.
    Raises:
        VerificationError saying what differs.
    """
    spki = _spki_of(certificate_der)
    expected = hashlib.sha256(spki).digest()
    found = read_binding(user_data, service)
    if found != expected:
        reason = _explain_mismatch(user_data, service)
        raise VerificationError("TLS binding", reason, expected=expected, actual=found)
    if public_key is not None and public_key != spki:
        reason = "the public_key of the document is not the key of the TLS connection"
        raise VerificationError("TLS binding", reason, expected=spki, actual=public_key)


def _spki_of(certificate_der: bytes) -> bytes:
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization

    try:
        key = x509.load_der_x509_certificate(certificate_der).public_key()
        return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    except Exception as exc:  # the peer's bytes: whichever of its exceptions the parser picks, it is no certificate
        raise VerificationError("TLS binding", "the certificate of the TLS connection cannot be read") from exc


def _explain_mismatch(user_data: bytes | None, service: str) -> str:
    """Return why `user_data`, already known to be wrong, is wrong."""
    if not user_data:
        return "the document has no user_data"
    try:
        fields = json.loads(user_data)
    except (ValueError, RecursionError):
        return "the user_data of the document is no binding"
    if not isinstance(fields, dict) or fields.get("purpose") != PURPOSE:
        return f"the user_data of the document is no binding for purpose {PURPOSE!r}"
    if fields.get("service") != service:
        return f"the document was made for service {str(fields.get('service'))[:MAX_SERVICE_CHARS]!r}, not {service!r}"
    return "the document was made for another TLS key"
