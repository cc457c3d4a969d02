# SPDX-License-Identifier: Apache-2.0
"""The roots of trust: AWS's, embedded and pinned by its hash; those of other partitions from a policy; a development
root only from a file named by the user."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import cache

from enclavekit_core.errors import ConfigError, InputError

# SHA-256 of the certificate's DER. (8cf60e2b... on AWS's pages is the hash of the ZIP file that holds it.)
AWS_ROOT_SHA256 = "641a0321a3e244efe456463195d606317ed7cdcc3c1756e09893f3c68f79bb5b"
AWS = "aws"  # the partition of all commercial regions but China's
PARTITION = re.compile(r"aws(?:-[a-z]+)*")
MAX_ROOT_FILE_BYTES = 16384  # a P-384 certificate in PEM has less than 1 KiB


@dataclass(frozen=True, slots=True)
class TrustedRoot:
    """A root, and the partition that it is of; None for a development root."""

    der: bytes
    partition: str | None


@cache
def aws_root() -> bytes:
    """Return the DER of the AWS Nitro Enclaves root G1. Raises InputError if the installed file is not it."""
    from importlib import resources

    name = "aws-nitro-root-g1.der"
    der = (resources.files("enclavekit_attestation") / "data" / name).read_bytes()
    if root_fingerprint(der) != AWS_ROOT_SHA256:
        raise InputError("use", f"the embedded root {name}", "it has been changed")
    return der


def pinned_root() -> TrustedRoot:
    return TrustedRoot(aws_root(), AWS)


def root_fingerprint(der: bytes) -> str:
    """Return the SHA-256 of a certificate's DER, hex."""
    return hashlib.sha256(der).hexdigest()


def partition_root(partition: str, der: bytes, source: str) -> TrustedRoot:
    """Return the root of another AWS partition, which nobody has pinned here: whoever names it must know it.

    Its name must be the partition's, so that a development root, or one partition's for another, is not taken by
    mistake. Raises ConfigError.
    """
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    if not PARTITION.fullmatch(partition):
        raise ConfigError(source, f"roots.{partition:.40}", "it is not the name of an AWS partition (aws-us-gov, ...)")
    if partition == AWS:
        raise ConfigError(source, "roots.aws", "its root is embedded: write `aws: pinned`")
    names = x509.load_der_x509_certificate(der).subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    wanted = f"{partition}.nitro-enclaves"
    if [name.value for name in names] != [wanted]:
        raise ConfigError(source, f"roots.{partition}", f"the certificate's common name is not {wanted}")
    return TrustedRoot(der, partition)


def parse_certificate(content: bytes, what: str) -> bytes:
    """Return the DER of the one certificate in PEM `content`. Raises InputError."""
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding

    try:
        certificates = x509.load_pem_x509_certificates(content)
    except ValueError as exc:
        raise InputError("read", what, "it is not a PEM certificate") from exc
    if len(certificates) != 1:
        raise InputError("read", what, f"it holds {len(certificates)} certificates instead of one")
    return certificates[0].public_bytes(Encoding.DER)


def read_certificate_file(path: str, what: str) -> bytes:
    """Return the DER of the one certificate in the PEM file `path`. Raises InputError naming `what`."""
    try:
        with open(path, "rb") as source:
            return parse_certificate(source.read(MAX_ROOT_FILE_BYTES), what)
    except OSError as exc:
        raise InputError("read", what, (exc.strerror or str(exc)).lower()) from exc


def read_insecure_dev_root(path: str) -> bytes:
    """Return the DER of the one certificate in the PEM file `path`: a root that proves nothing about AWS hardware.

    Raises:
        InputError: no file, no certificate, or more than one.
    """
    return read_certificate_file(path, f"development root {path}")
