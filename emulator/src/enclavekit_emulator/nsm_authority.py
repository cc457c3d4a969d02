# SPDX-License-Identifier: Apache-2.0
"""The emulator's certificate authority: a development root per machine and, below it, a chain shaped like AWS's.

Root, regional, zonal, instance and a leaf of three hours, all P-384 with ECDSA-SHA384; path lengths, key usages and
lifetimes as in real documents. The names say "dev", and the root is nobody's but this machine's: a verifier takes it
only when it is named with --insecure-dev-root.
"""

from __future__ import annotations

import datetime
import errno
import os
import secrets
import shutil
import stat
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from enclavekit_core.errors import InputError, describe_cause

ROOT_DIRECTORY = "dev-root"
ROOT_KEY, ROOT_CERTIFICATE = "root.key", "root.pem"
ROOT_NAME = "enclavekit-dev.nitro-enclaves"
REGION = "dev-local-1"
ROOT_LIFETIME = datetime.timedelta(days=3650)
REGIONAL_LIFETIME = datetime.timedelta(days=20)
ZONAL_LIFETIME = datetime.timedelta(days=6)
INSTANCE_LIFETIME = datetime.timedelta(days=1)
LEAF_LIFETIME = datetime.timedelta(hours=3)
NO_AGE = datetime.timedelta(0)
BACKDATE = datetime.timedelta(seconds=3)  # as AWS does, for verifiers whose clock is a little behind
MAX_PEM_BYTES = 64 * 1024  # a P-384 key or certificate has less than one
MAX_COMMON_NAME = 64  # X.520; AWS's longest has 63

Key = ec.EllipticCurvePrivateKey


@dataclass(frozen=True)
class Issuer:
    """A certificate authority: its key and its certificate."""

    key: Key
    certificate: x509.Certificate


@dataclass(frozen=True)
class Leaf:
    """What signs documents."""

    key: Key
    certificate_der: bytes
    bundle_der: tuple[bytes, ...]
    """Root, regional, zonal, instance."""
    not_before: datetime.datetime
    not_after: datetime.datetime


def ensure_dev_root(state_dir: str) -> Issuer:
    """Return this machine's development root, made at the first call; two first calls at once agree.

    Raises: InputError if it cannot be made or read, or if others may read its key.
    """
    directory = os.path.join(state_dir, ROOT_DIRECTORY)
    try:
        os.makedirs(state_dir, mode=0o700, exist_ok=True)
        if not os.path.isdir(directory):
            _create_root(directory)
        return _load_root(directory)
    except (OSError, ValueError) as exc:
        raise InputError("use", f"development root {directory}", describe_cause(exc)) from exc


def dev_root_path(state_dir: str) -> str:
    """Return the path of the root's certificate, which verifiers are given; it may not exist yet."""
    return os.path.join(state_dir, ROOT_DIRECTORY, ROOT_CERTIFICATE)


def make_root(now: datetime.datetime, name: str = ROOT_NAME) -> Issuer:
    """Return a new self-signed root."""
    key = ec.generate_private_key(ec.SECP384R1())
    subject = _name(name, organisation=True)
    builder = _builder(subject, subject, key, now, ROOT_LIFETIME).add_extension(
        x509.BasicConstraints(ca=True, path_length=None), critical=True
    )
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    usage = _key_usage(digital_signature=True, key_cert_sign=True, crl_sign=True)
    certificate = builder.add_extension(usage, critical=True).sign(key, hashes.SHA384())
    return Issuer(key, certificate)


def issue_leaf(root: Issuer, module_id: str, now: datetime.datetime, *, age: datetime.timedelta = NO_AGE) -> Leaf:
    """Return a fresh chain below `root` for one enclave.

    Args:
        module_id: `<instance id>-enc<16 hex>`.
        age: how long ago the leaf, but not what is above it, was issued.
    """
    instance, _, slot = module_id.partition("-enc")
    marker = secrets.token_hex(8)
    regional = _issue_ca(root, f"{marker}.{REGION}.{ROOT_NAME}", 2, now, REGIONAL_LIFETIME)
    zonal = _issue_ca(regional, f"{marker}.zonal.{REGION}.{ROOT_NAME}", 1, now, ZONAL_LIFETIME)
    parent = _issue_ca(zonal, f"{instance}.{REGION}.{ROOT_NAME}", 0, now, INSTANCE_LIFETIME)
    key = ec.generate_private_key(ec.SECP384R1())
    issued = now - age
    # as on AWS: the enclave's number, then the second it was issued in
    serial = int(slot, 16) << 64 | int(issued.timestamp())
    subject = _name(f"{module_id}.{REGION}.enclavekit")
    builder = _builder(subject, parent.certificate.subject, key, issued, LEAF_LIFETIME, serial)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    usage = _key_usage(digital_signature=True, content_commitment=True)
    certificate = builder.add_extension(usage, critical=False).sign(parent.key, hashes.SHA384())
    chain = (root, regional, zonal, parent)
    der = serialization.Encoding.DER
    return Leaf(
        key,
        certificate.public_bytes(der),
        tuple(issuer.certificate.public_bytes(der) for issuer in chain),
        certificate.not_valid_before_utc,
        certificate.not_valid_after_utc,
    )


def _issue_ca(
    issuer: Issuer, name: str, path_length: int, now: datetime.datetime, lifetime: datetime.timedelta
) -> Issuer:
    key = ec.generate_private_key(ec.SECP384R1())
    builder = _builder(_name(name), issuer.certificate.subject, key, now, lifetime)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
    above = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.key.public_key())
    builder = builder.add_extension(above, critical=False)
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    usage = _key_usage(key_cert_sign=True, crl_sign=path_length > 0, digital_signature=path_length > 0)
    return Issuer(key, builder.add_extension(usage, critical=True).sign(issuer.key, hashes.SHA384()))


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: Key,
    now: datetime.datetime,
    lifetime: datetime.timedelta,
    serial: int | None = None,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number() if serial is None else serial)
        .not_valid_before(now - BACKDATE)
        .not_valid_after(now + lifetime)
    )


def _name(common_name: str, *, organisation: bool = False) -> x509.Name:
    attributes = [x509.NameAttribute(NameOID.COUNTRY_NAME, "XX")]
    if organisation:
        attributes.append(x509.NameAttribute(NameOID.ORGANIZATION_NAME, "enclavekit development, not AWS"))
    attributes.append(x509.NameAttribute(NameOID.COMMON_NAME, common_name[:MAX_COMMON_NAME]))
    return x509.Name(attributes)


def _key_usage(
    *,
    digital_signature: bool = False,
    content_commitment: bool = False,
    key_cert_sign: bool = False,
    crl_sign: bool = False,
) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=content_commitment,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _create_root(directory: str) -> None:
    """Make the root aside and rename it into place, so that nobody sees half of it."""
    root = make_root(datetime.datetime.now(datetime.UTC))
    key_pem = root.key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    temporary = f"{directory}.{os.getpid()}.{secrets.token_hex(4)}"
    os.mkdir(temporary, 0o700)
    try:
        _write(os.path.join(temporary, ROOT_KEY), key_pem, 0o600)
        certificate_pem = root.certificate.public_bytes(serialization.Encoding.PEM)
        _write(os.path.join(temporary, ROOT_CERTIFICATE), certificate_pem, 0o644)
        os.rename(temporary, directory)
    except BaseException as exc:
        shutil.rmtree(temporary, ignore_errors=True)
        # another process was first: a directory that is not empty cannot be renamed over
        if isinstance(exc, OSError) and exc.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return
        raise


def _write(path: str, data: bytes, mode: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with open(descriptor, "wb") as out:
        out.write(data)
        out.flush()
        os.fsync(descriptor)  # a power cut must not leave a root that is there and empty


def _load_root(directory: str) -> Issuer:
    key_pem, info = _read(os.path.join(directory, ROOT_KEY))
    # root may use what a user made: sudo keeps HOME on some systems
    if os.geteuid() not in (0, info.st_uid) or stat.S_IMODE(info.st_mode) & 0o077:
        raise ValueError(f"others may read {ROOT_KEY}, or own it")
    key = serialization.load_pem_private_key(key_pem, None)
    certificate = x509.load_pem_x509_certificate(_read(os.path.join(directory, ROOT_CERTIFICATE))[0])
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        raise ValueError("key and certificate do not belong together")
    return Issuer(key, certificate)


def _read(path: str) -> tuple[bytes, os.stat_result]:
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as source:
        return source.read(MAX_PEM_BYTES), os.fstat(source.fileno())
