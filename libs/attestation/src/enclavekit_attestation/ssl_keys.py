# SPDX-License-Identifier: Apache-2.0
"""Keys of certificates, by the OpenSSL that Python's `ssl` has loaded anyway.

Package cryptography brings an OpenSSL of its own: 10 MB in each service that checks callers and does nothing else with
it. `ssl` does not offer these functions, its library does. Source: OpenSSL 3.0's manual, section 3.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import ssl
from collections.abc import Iterator
from ctypes import c_char_p, c_int, c_long, c_size_t, c_void_p

OLDEST = (3, 0)  # earlier ones know nothing of EVP_PKEY_is_a
NID_COMMON_NAME = 13
MAX_NAME_BYTES = 256
MAX_WORD_BYTES = 32
CURVE = b"group"  # parameters, EVP_PKEY-EC(7)
EC_FORM = {b"encoding": b"named_curve", b"point-format": b"uncompressed"}

# name -> result, arguments
FUNCTIONS: dict[str, tuple[object, ...]] = {
    "ERR_clear_error": (None,),
    "EVP_DigestVerify": (c_int, c_void_p, c_char_p, c_size_t, c_char_p, c_size_t),
    "EVP_DigestVerifyInit": (c_int, c_void_p, c_void_p, c_void_p, c_void_p, c_void_p),
    "EVP_MD_CTX_free": (None, c_void_p),
    "EVP_MD_CTX_new": (c_void_p,),
    "EVP_PKEY_CTX_free": (None, c_void_p),
    "EVP_PKEY_CTX_new_from_pkey": (c_void_p, c_void_p, c_void_p, c_char_p),
    "EVP_PKEY_get_utf8_string_param": (c_int, c_void_p, c_char_p, c_char_p, c_size_t, c_void_p),
    "EVP_PKEY_is_a": (c_int, c_void_p, c_char_p),
    "EVP_PKEY_public_check_quick": (c_int, c_void_p),
    "EVP_PKEY_set_utf8_string_param": (c_int, c_void_p, c_char_p, c_char_p),
    "EVP_sha256": (c_void_p,),
    "X509_NAME_get_text_by_NID": (c_int, c_void_p, c_int, c_char_p, c_int),
    "X509_free": (None, c_void_p),
    "X509_get0_pubkey": (c_void_p, c_void_p),
    "X509_get_subject_name": (c_void_p, c_void_p),
    "d2i_X509": (c_void_p, c_void_p, c_void_p, c_long),
    "i2d_PUBKEY": (c_int, c_void_p, c_void_p),
}


@functools.cache
def find_library() -> ctypes.CDLL | None:
    """Return the library with its functions declared; None where it is too old, or a part of the interpreter."""
    import _ssl

    path = getattr(_ssl, "__file__", None)
    if path is None or ssl.OPENSSL_VERSION_INFO < OLDEST:
        return None
    library = ctypes.CDLL(path)  # looks in what it is linked to as well
    try:
        for name, (result, *arguments) in FUNCTIONS.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
    except AttributeError:
        return None
    return library


class CertificateError(ValueError):
    """What was given is no certificate with a key that can be read."""


class CertificateKey:
    """The key of a certificate, while `read_certificate` lasts."""

    def __init__(self, library: ctypes.CDLL, certificate: int, key: int) -> None:
        self._library, self._certificate, self._key = library, certificate, key

    @property
    def common_name(self) -> str | None:
        """The first that the subject has."""
        text = ctypes.create_string_buffer(MAX_NAME_BYTES)
        subject = self._library.X509_get_subject_name(self._certificate)
        length = self._library.X509_NAME_get_text_by_NID(subject, NID_COMMON_NAME, text, len(text))
        return text.raw[:length].decode(errors="replace") if length >= 0 else None

    @property
    def is_ec(self) -> bool:
        return bool(self._library.EVP_PKEY_is_a(self._key, b"EC"))

    @property
    def is_ed25519(self) -> bool:
        return bool(self._library.EVP_PKEY_is_a(self._key, b"ED25519"))

    @property
    def spki_der(self) -> bytes:
        """SubjectPublicKeyInfo; of an EC key with its curve's name and its point uncompressed, however it came.

        Raises: CertificateError.
        """
        if self.is_ec:
            for name, value in EC_FORM.items():
                if not self._library.EVP_PKEY_set_utf8_string_param(self._key, name, value):
                    raise CertificateError
        length = self._library.i2d_PUBKEY(self._key, None)
        if length <= 0:
            raise CertificateError
        encoded = ctypes.create_string_buffer(length)
        position = c_void_p(ctypes.addressof(encoded))
        if self._library.i2d_PUBKEY(self._key, ctypes.byref(position)) != length:
            raise CertificateError
        return encoded.raw

    def verify(self, signature: bytes, signed: bytes) -> bool:
        """Say whether the key has made `signature`: with Ed25519, or ECDSA over SHA-256."""
        digest = None if self.is_ed25519 else self._library.EVP_sha256()
        context = self._library.EVP_MD_CTX_new()
        try:
            return bool(
                self._library.EVP_DigestVerifyInit(context, None, digest, None, self._key) == 1
                and self._library.EVP_DigestVerify(context, signature, len(signature), signed, len(signed)) == 1
            )
        finally:
            self._library.EVP_MD_CTX_free(context)

    def check_curve(self) -> None:
        """Refuse an EC key on a curve of somebody's own (CVE-2020-0601 is what comes of it), or that is no point to
        sign by, such as the one at infinity. Raises CertificateError.
        """
        curve = ctypes.create_string_buffer(MAX_WORD_BYTES)
        if not self._library.EVP_PKEY_get_utf8_string_param(self._key, CURVE, curve, len(curve), None):
            raise CertificateError
        context = self._library.EVP_PKEY_CTX_new_from_pkey(None, self._key, None)
        try:
            if self._library.EVP_PKEY_public_check_quick(context) != 1:
                raise CertificateError
        finally:
            self._library.EVP_PKEY_CTX_free(context)


@contextlib.contextmanager
def read_certificate(library: ctypes.CDLL, der: bytes) -> Iterator[CertificateKey]:
    """Yield the key of a certificate. Raises CertificateError if it is none, or followed by anything."""
    with contextlib.ExitStack() as stack:
        # what a failure leaves there would be taken for one of the next TLS connection
        stack.callback(library.ERR_clear_error)
        data = ctypes.create_string_buffer(der, len(der))
        position = c_void_p(ctypes.addressof(data))
        certificate = library.d2i_X509(None, ctypes.byref(position), len(der))
        if not certificate:
            raise CertificateError
        stack.callback(library.X509_free, certificate)
        key = library.X509_get0_pubkey(certificate)
        if not key or position.value != ctypes.addressof(data) + len(der):
            raise CertificateError
        found = CertificateKey(library, certificate, key)
        if found.is_ec:
            found.check_curve()
        yield found
