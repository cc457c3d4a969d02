# SPDX-License-Identifier: Apache-2.0
"""How a caller proves to an enclave who it is: a signature by its certificate's key, over what only this connection
has. Certificates are carriers of keys here: no authority is asked, whoever calls looks the key up in a measured list.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from enclavekit_core.errors import InputError, VerificationError, describe_cause

from enclavekit_attestation import ssl_keys

if TYPE_CHECKING:
    import ctypes

MAX_NAME_CHARS = 64
MAX_FILE_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Caller:
    """Who holds a key, proven."""

    spki_sha256: bytes
    """32 bytes, of the certificate's SubjectPublicKeyInfo."""
    claimed_name: str
    """What the certificate says, proven by nobody."""


@dataclass(frozen=True)
class Identity:
    """A loaded key pair, as `pipeline keygen` makes them."""

    certificate_der: bytes
    key_pem: bytes

    @classmethod
    def load(cls, prefix: str) -> Identity:
        """Read PREFIX.key and PREFIX.crt; PREFIX may also name either file. Raises InputError."""
        from cryptography import x509
        from cryptography.hazmat.primitives.serialization import Encoding

        base = re.sub(r"\.(key|crt)\Z", "", prefix)
        key, certificate = _read(f"{base}.key"), _read(f"{base}.crt")
        try:
            return cls(x509.load_pem_x509_certificate(certificate).public_bytes(Encoding.DER), key)
        except ValueError as exc:
            raise InputError("use identity", f"{base}.crt", "it is not a certificate in PEM form") from exc

    def sign(self, data: bytes) -> bytes:
        """Sign for the enclave. Raises InputError if the key cannot."""
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import ec, ed25519
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        try:
            key = load_pem_private_key(self.key_pem, None)
        except (ValueError, TypeError) as exc:
            raise InputError("use identity", "key", "it is damaged or protected by a password") from exc
        if isinstance(key, ec.EllipticCurvePrivateKey):
            return key.sign(data, ec.ECDSA(hashes.SHA256()))
        if isinstance(key, ed25519.Ed25519PrivateKey):
            return key.sign(data)
        raise InputError("use identity", "key", "it is neither an EC nor an Ed25519 key")


def key_of_client(certificate: str | None, spki_sha256: str | None) -> bytes:
    """Return the 32 bytes by which a list knows a client, from the one of the two that its entry has.

    Args: certificate: PEM. spki_sha256: hex.
    Raises: ValueError with the reason, to stand after the client's name.
    """
    from cryptography import x509
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    if (certificate is None) == (spki_sha256 is None):
        raise ValueError("it needs a certificate or an spki_sha256, and not both")
    try:
        if spki_sha256 is not None:
            key = bytes.fromhex(spki_sha256)
            public = None
        else:
            public = x509.load_pem_x509_certificate((certificate or "").encode()).public_key()
            key = hashlib.sha256(public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).digest()
    except (ValueError, UnsupportedAlgorithm) as exc:
        raise ValueError("its certificate or key hash is malformed") from exc
    if len(key) != hashlib.sha256().digest_size:
        raise ValueError("its certificate or key hash is malformed")
    if public is not None and not isinstance(public, ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey):
        raise ValueError("its key is neither EC nor Ed25519")
    return key


def check_proof(certificate_der: bytes, signature: bytes, signed: bytes) -> Caller:
    """Return who made `signature` over `signed`. Raises VerificationError if the certificate's key did not."""
    library = ssl_keys.find_library()
    if library is None:
        return check_by_cryptography(certificate_der, signature, signed)
    return check_by_ssl(library, certificate_der, signature, signed)


def check_by_ssl(library: ctypes.CDLL, certificate_der: bytes, signature: bytes, signed: bytes) -> Caller:
    """`check_proof` by the OpenSSL of Python's ssl: all that a listener has to load for it is there already."""
    try:
        with ssl_keys.read_certificate(library, certificate_der) as key:
            if not (key.is_ec or key.is_ed25519):
                raise _no_such_key()
            if not key.verify(signature, signed):
                raise _not_signed()
            return _caller(key.spki_der, key.common_name)
    except ssl_keys.CertificateError as exc:
        raise _no_certificate() from exc


def check_by_cryptography(certificate_der: bytes, signature: bytes, signed: bytes) -> Caller:
    """`check_proof` where ssl's library cannot be used."""
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    try:
        certificate = x509.load_der_x509_certificate(certificate_der)
        key = certificate.public_key()
        names = certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    except Exception as exc:  # a stranger's bytes: whichever exception the parser picks, it is no certificate
        raise _no_certificate() from exc
    try:
        if isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(signature, signed, ec.ECDSA(hashes.SHA256()))
        elif isinstance(key, ed25519.Ed25519PublicKey):
            key.verify(signature, signed)
        else:
            raise _no_such_key()
    except (InvalidSignature, UnsupportedAlgorithm) as exc:
        raise _not_signed() from exc
    spki = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return _caller(spki, str(names[0].value) if names else None)


def _caller(spki_der: bytes, name: str | None) -> Caller:
    return Caller(hashlib.sha256(spki_der).digest(), "without a name" if name is None else name[:MAX_NAME_CHARS])


def _no_certificate() -> VerificationError:
    return VerificationError("the caller", "the certificate is not one")


def _no_such_key() -> VerificationError:
    return VerificationError("the caller", "neither an EC nor an Ed25519 key")


def _not_signed() -> VerificationError:
    return VerificationError("the caller", "the signature is not by the certificate's key")


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as source:
            return source.read(MAX_FILE_BYTES)
    except OSError as exc:
        raise InputError("use identity", path, describe_cause(exc)) from exc
