# SPDX-License-Identifier: Apache-2.0
"""Real documents, and a maker of documents with any defect, written with other libraries than the code under test."""

from __future__ import annotations

import datetime
import hashlib
import os
from dataclasses import dataclass, field
from types import SimpleNamespace

import cbor2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, utils
from cryptography.x509.oid import NameOID
from enclavekit_attestation.cli import main

from .enclave_server import PCRS

DATA = os.path.join(os.path.dirname(__file__), "data")
NOW = datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)
NOW_MS = int(NOW.timestamp() * 1000)
CA_USAGE = dict.fromkeys(
    [
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
        "crl_sign",
        "encipher_only",
        "decipher_only",
    ],
    False,
)

REAL_DOCUMENTS = {  # file: milliseconds at which it was made, debug mode
    "attdoc-2022-09-signed-eif-pcr8.cbor": (1664379207680, False),
    "attdoc-2022-10-debug-mode.cbor": (1665582606081, True),
    "attdoc-2022-11-eu-west-1.cbor": (1668034320696, False),
    "attdoc-2024-12-ap-south-1.cbor": (1734075478960, False),
}


def read_data(name):
    with open(os.path.join(DATA, name), "rb") as source:
        return source.read()


@dataclass
class Spec:
    """One certificate to make; every field may be made wrong."""

    name: str
    ca: bool = True
    path_length: int | None = None
    issuer_name: str | None = None
    not_before: datetime.datetime = NOW - datetime.timedelta(hours=1)
    not_after: datetime.datetime = NOW + datetime.timedelta(hours=2)
    constraints: bool = True
    constraints_critical: bool = True
    usage: bool = True
    cert_sign: bool = True
    digital_signature: bool = False
    extra: list = field(default_factory=list)  # (extension, critical)
    curve: type = ec.SECP384R1
    digest: type = hashes.SHA384
    wrong_signer: bool = False


def default_specs():
    return {
        "root": Spec("root"),
        "regional": Spec("regional", path_length=2),
        "zonal": Spec("zonal", path_length=1),
        "instance": Spec("instance", path_length=0),
        "leaf": Spec("leaf", ca=False, cert_sign=False, digital_signature=True),
    }


def make_certificate(spec, issuer_spec, issuer_key):
    key = ec.generate_private_key(spec.curve())
    signer = ec.generate_private_key(ec.SECP384R1()) if spec.wrong_signer else (issuer_key or key)

    def name_of(text):
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

    builder = (
        x509.CertificateBuilder()
        .subject_name(name_of(spec.name))
        .issuer_name(name_of(spec.issuer_name or (issuer_spec.name if issuer_spec else spec.name)))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(spec.not_before)
        .not_valid_after(spec.not_after)
    )
    if spec.constraints:
        constraints = x509.BasicConstraints(spec.ca, spec.path_length)
        builder = builder.add_extension(constraints, critical=spec.constraints_critical)
    if spec.usage:
        usage = x509.KeyUsage(digital_signature=spec.digital_signature, key_cert_sign=spec.cert_sign, **CA_USAGE)
        builder = builder.add_extension(usage, critical=True)
    for extension, critical in spec.extra:
        builder = builder.add_extension(extension, critical=critical)
    return key, builder.sign(signer, spec.digest())


def der(certificate):
    return certificate.public_bytes(serialization.Encoding.DER)


def make_chain(**changes):
    """Return leaf key, leaf DER, cabundle and root DER; `changes` are {certificate: {field: value}}."""
    specs = default_specs()
    for who, fields in changes.items():
        for name, value in fields.items():
            setattr(specs[who], name, value)
    key, issuer, bundle = None, None, []
    for spec in specs.values():
        key, certificate = make_certificate(spec, issuer, key)
        issuer = spec
        bundle.append(der(certificate))
    return SimpleNamespace(leaf_key=key, leaf=bundle[-1], cabundle=bundle[:-1], root=bundle[0])


def make_payload(chain, changes=()):
    payload = {
        "module_id": "i-0123456789abcdef0-enc0123456789abcdef",
        "digest": "SHA384",
        "timestamp": NOW_MS,
        "pcrs": {index: hashlib.sha384(bytes([index])).digest() for index in range(16)},
        "certificate": chain.leaf,
        "cabundle": chain.cabundle,
        "public_key": None,
        "user_data": b"",
        "nonce": None,
    }
    payload.update(changes)  # a value of KeyError leaves the field out
    return {key: value for key, value in payload.items() if value is not KeyError}


def sign_payload(chain, encoded):
    protected = bytes.fromhex("a1013822")
    to_sign = cbor2.dumps(["Signature1", protected, b"", encoded])
    r, s = utils.decode_dss_signature(chain.leaf_key.sign(to_sign, ec.ECDSA(hashes.SHA384())))
    size = max(48, (chain.leaf_key.curve.key_size + 7) // 8)  # more on a curve that no leaf may have
    return cbor2.dumps([protected, {}, encoded, (r.to_bytes(size, "big") + s.to_bytes(size, "big"))[-96:]])


def make_document(chain, changes=()):
    return sign_payload(chain, cbor2.dumps(make_payload(chain, changes)))


@pytest.fixture(scope="session")
def chain():
    return make_chain()


@pytest.fixture(scope="session")
def make():
    """The makers above, for tests that cannot import a conftest."""
    return SimpleNamespace(
        chain=make_chain,
        payload=make_payload,
        payload_bytes=lambda chain: cbor2.dumps(make_payload(chain)),
        sign=sign_payload,
        document=make_document,
        der=der,
        now=NOW,
        now_ms=NOW_MS,
    )


@pytest.fixture(params=sorted(REAL_DOCUMENTS))
def real(request):
    made_at_ms, debug = REAL_DOCUMENTS[request.param]
    raw = read_data(request.param)
    return SimpleNamespace(name=request.param, raw=raw, made_at_ms=made_at_ms, debug=debug)


@pytest.fixture(scope="session")
def production():
    """A plain production document and the moment it was made."""
    name = "attdoc-2024-12-ap-south-1.cbor"
    path = os.path.join(DATA, name)
    return SimpleNamespace(raw=read_data(name), made_at_ms=REAL_DOCUMENTS[name][0], path=path)


@pytest.fixture(scope="session")
def data_dir():
    return DATA


@pytest.fixture
def attest(capsys):
    def run(*arguments):
        try:
            code = main([*map(str, arguments)])
        except SystemExit as exc:
            code = exc.code
        out, err = capsys.readouterr()
        return SimpleNamespace(code=code, out=out, err=err)

    return run


@pytest.fixture(scope="module")
def chain_now(make):
    now = datetime.datetime.now(datetime.UTC)
    life = {"not_before": now - datetime.timedelta(hours=1), "not_after": now + datetime.timedelta(hours=2)}
    return make.chain(**dict.fromkeys(("root", "regional", "zonal", "instance", "leaf"), life))


@pytest.fixture
def trust(chain_now, tmp_path):
    path = tmp_path / "root.pem"
    path.write_bytes(x509.load_der_x509_certificate(chain_now.root).public_bytes(serialization.Encoding.PEM))
    return ("--insecure-dev-root", path, "--pcr", f"0={PCRS[0].hex()}")
