# SPDX-License-Identifier: Apache-2.0
"""Small images and keys that the tests share."""

import datetime
import io
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from enclavekit_eif.cpio import CpioWriter
from enclavekit_eif.metadata import make_metadata
from enclavekit_eif.writer import write_eif

DATA = Path(__file__).parent / "data"


@pytest.fixture(scope="session")
def data():
    return DATA


@pytest.fixture
def inputs(tmp_path):
    """Arguments of write_eif: the contents of the synthetic samples."""
    directory = tmp_path / "inputs"
    directory.mkdir()
    for name in ("KERNEL", "RAMDISK0", "RAMDISK1"):
        (directory / name).write_text(name)
    return {
        "kernel": directory / "KERNEL",
        "cmdline": b"CMDLINE",
        "ramdisks": [directory / "RAMDISK0", directory / "RAMDISK1"],
        "metadata": make_metadata("synthetic", "1.0"),
    }


@pytest.fixture
def image(tmp_path, inputs):
    path = tmp_path / "image.eif"
    write_eif(path, **inputs)
    return path


@pytest.fixture
def archive():
    """`archive({b"name": data})` returns the bytes of a cpio archive of regular files."""

    def make(files):
        out = io.BytesIO()
        with CpioWriter(out) as writer:
            for name, content in files.items():
                writer.add_file(name, content)
        return out.getvalue()

    return make


@pytest.fixture
def key_files(tmp_path):
    """`key_files(curve)` writes a key and a self-signed certificate and returns (certificate path, key path)."""

    def make(key=None, name="signer"):
        key = key or ec.generate_private_key(ec.SECP384R1())
        subject = x509.Name(
            [x509.NameAttribute(NameOID.COMMON_NAME, name), x509.NameAttribute(NameOID.COUNTRY_NAME, "SE")]
        )
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject)
            .public_key(key.public_key())
            .serial_number(1)
            .not_valid_before(datetime.datetime(2020, 1, 2, 3, 4, 5))
            .not_valid_after(datetime.datetime(2040, 10, 28, 13, 28, 5))
            .sign(key, hashes.SHA384())
        )
        certificate_path, key_path = tmp_path / f"{name}.crt", tmp_path / f"{name}.key"
        certificate_path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        key_path.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return str(certificate_path), str(key_path)

    return make
