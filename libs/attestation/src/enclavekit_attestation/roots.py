# SPDX-License-Identifier: Apache-2.0
"""The roots of trust: AWS's, embedded and pinned by its hash; a development root only from a file named by the user."""

from __future__ import annotations

import hashlib
from functools import cache

from enclavekit_core.errors import InputError

# SHA-256 of the certificate's DER. (8cf60e2b... on AWS's pages is the hash of the ZIP file that holds it.)
AWS_ROOT_SHA256 = "641a0321a3e244efe456463195d606317ed7cdcc3c1756e09893f3c68f79bb5b"
MAX_ROOT_FILE_BYTES = 16384  # a P-384 certificate in PEM has less than 1 KiB


@cache
def aws_root() -> bytes:
    """Return the DER of the AWS Nitro Enclaves root G1. Raises InputError if the installed file is not it."""
    from importlib import resources

    name = "aws-nitro-root-g1.der"
    der = (resources.files("enclavekit_attestation") / "data" / name).read_bytes()
    if root_fingerprint(der) != AWS_ROOT_SHA256:
        raise InputError("use", f"the embedded root {name}", "it has been changed")
    return der


def root_fingerprint(der: bytes) -> str:
    """Return the SHA-256 of a certificate's DER, hex."""
    return hashlib.sha256(der).hexdigest()


def read_insecure_dev_root(path: str) -> bytes:
    """Return the DER of the one certificate in the PEM file `path`: a root that proves nothing about AWS hardware.

    Raises:
        InputError: no file, no certificate, or more than one.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding

    try:
        with open(path, "rb") as source:
            text = source.read(MAX_ROOT_FILE_BYTES)
        certificates = x509.load_pem_x509_certificates(text)
    except OSError as exc:
        raise InputError("read", f"development root {path}", (exc.strerror or str(exc)).lower()) from exc
    except ValueError as exc:
        raise InputError("read", f"development root {path}", "it is not a PEM certificate") from exc
    if len(certificates) != 1:
        raise InputError(
            "read", f"development root {path}", f"it holds {len(certificates)} certificates instead of one"
        )
    return certificates[0].public_bytes(Encoding.DER)
