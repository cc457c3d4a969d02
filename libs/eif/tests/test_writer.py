# SPDX-License-Identifier: Apache-2.0
import datetime
import os

import cbor2
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from enclavekit_core.errors import InputError, VerificationError
from enclavekit_eif.describe import describe_eif
from enclavekit_eif.measure import measure
from enclavekit_eif.metadata import build_time_of, make_metadata
from enclavekit_eif.model import SectionType
from enclavekit_eif.reader import arch_name, read_eif
from enclavekit_eif.signature import (
    EifSignature,
    decode_signature,
    encode_signature,
    load_signer,
    read_signature,
    verify_signature,
    verify_validity,
)
from enclavekit_eif.writer import MAX_RAMDISKS, write_eif
from hypothesis import given, settings
from hypothesis import strategies as st

CURVES = [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()]


def test_image_equals_the_sample_made_by_another_program(data, tmp_path, inputs):
    inputs["metadata"] = make_metadata(
        "synthetic", "1.0", build_tool="spec-vector", build_tool_version="0", kernel_version="0.0.0"
    )
    write_eif(tmp_path / "ours.eif", **inputs)
    assert (tmp_path / "ours.eif").read_bytes() == (data / "synthetic-unsigned.eif").read_bytes()


def test_returned_measurements_are_those_of_the_file(tmp_path, inputs):
    written = write_eif(tmp_path / "a.eif", **inputs, arch="aarch64")
    eif = read_eif(tmp_path / "a.eif")
    assert measure(eif) == written
    assert written.crc_ok
    assert arch_name(eif) == "aarch64"
    assert [section.type.name for section in eif.sections] == ["KERNEL", "CMDLINE", "METADATA", "RAMDISK", "RAMDISK"]


def test_same_arguments_give_the_same_bytes(tmp_path, inputs, key_files):
    signer = load_signer(*key_files())
    for name in ("a.eif", "b.eif"):
        write_eif(tmp_path / name, **inputs, signer=signer)
    assert (tmp_path / "a.eif").read_bytes() == (tmp_path / "b.eif").read_bytes()


def test_metadata_is_not_measured(tmp_path, inputs):
    first = write_eif(tmp_path / "a.eif", **inputs)
    inputs["metadata"] = make_metadata("synthetic", "1.0", build_time=build_time_of(1700000000))
    assert write_eif(tmp_path / "b.eif", **inputs) == first
    assert read_eif(tmp_path / "b.eif").metadata["BuildMetadata"]["BuildTime"] == "2023-11-14T22:13:20+00:00"


@pytest.mark.parametrize(
    "change, cause",
    [
        ({"kernel": "no-such-kernel"}, "cannot read kernel no-such-kernel: no such file"),
        ({"kernel": "/dev/null"}, "not a regular file"),
        ({"kernel": os.curdir}, "not a regular file"),
        ({"ramdisks": []}, "0 ramdisks"),
        ({"ramdisks": ["missing"]}, "cannot read ramdisk missing"),
        ({"ramdisks": ["x"] * (MAX_RAMDISKS + 1)}, "ramdisks are not 1 to 28"),
        ({"cmdline": b"a\0b"}, "NUL"),
        ({"cmdline": b"a" * 65537}, "more than 65536"),
        ({"arch": "riscv"}, "unknown architecture"),
        ({"metadata": {}}, "ImageName is missing"),
        ({"metadata": make_metadata("n", "1", custom={1j})}, "metadata"),
        ({"metadata": make_metadata("n", "\ud800")}, "metadata"),
        ({"metadata": make_metadata("n" * (1 << 20), "1")}, "more than"),
    ],
)
def test_bad_input_leaves_what_was_there(tmp_path, inputs, change, cause):
    out = tmp_path / "out"
    out.mkdir()
    (out / "a.eif").write_text("before")
    with pytest.raises(InputError, match=cause):
        write_eif(out / "a.eif", **{**inputs, **change})
    assert [path.name for path in out.iterdir()] == ["a.eif"]
    assert (out / "a.eif").read_text() == "before"


def test_empty_inputs_are_refused(tmp_path, inputs):
    inputs["ramdisks"][1].write_bytes(b"")
    with pytest.raises(InputError, match="it is empty"):
        write_eif(tmp_path / "a.eif", **inputs)


def test_failure_while_writing_leaves_nothing(tmp_path, inputs):
    class FailingSigner:
        certificate_pem = b""

        def sign(self, pcr0):
            raise InputError("sign", "EIF", "no")

    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(InputError):
        write_eif(out / "a.eif", **inputs, signer=FailingSigner())
    assert list(out.iterdir()) == []
    with pytest.raises(InputError, match="cannot write EIF"):
        write_eif(tmp_path / "no-such-directory" / "a.eif", **inputs)


@pytest.mark.parametrize("umask, mode", [(0o027, 0o640), (0o077, 0o600)])
def test_mode_follows_the_umask(tmp_path, inputs, umask, mode):
    before = os.umask(umask)
    try:
        write_eif(tmp_path / "m.eif", **inputs)
    finally:
        os.umask(before)
    assert (tmp_path / "m.eif").stat().st_mode & 0o777 == mode


@pytest.mark.parametrize("curve", CURVES, ids=lambda curve: curve.name)
def test_signed_image_verifies(tmp_path, inputs, key_files, curve):
    signer = load_signer(*key_files(ec.generate_private_key(curve)))
    written = write_eif(tmp_path / "s.eif", **inputs, signer=signer)
    eif = read_eif(tmp_path / "s.eif")
    assert measure(eif) == written
    assert written.pcr8 is not None
    assert eif.sections[-1].type is SectionType.SIGNATURE
    verify_signature(read_signature(eif), written.pcr0)
    described = describe_eif(eif)
    assert described["SignatureCheck"] is True
    assert described["SigningCertificate"]["IssuerName"] == {"commonName": "signer", "countryName": "SE"}
    assert described["SigningCertificate"]["NotAfter"] == "Oct 28 13:28:05 2040 GMT"


def test_signature_of_the_sample_has_our_encoding(data):
    with read_eif(data / "synthetic-signed.eif") as eif:
        signature = read_signature(eif)
        assert encode_signature(signature) == eif.read_section(eif.signature)
        verify_signature(signature, measure(eif).pcr0)
        tagged = cbor2.dumps(cbor2.CBORTag(18, cbor2.loads(signature.cose)))
        verify_signature(EifSignature(signature.certificate_pem, tagged), measure(eif).pcr0)


def test_signature_over_another_image_is_refused(tmp_path, inputs, key_files):
    signature = decode_signature(load_signer(*key_files()).sign(bytes(48)))
    verify_signature(signature, bytes(48))
    with pytest.raises(VerificationError, match="another PCR0"):
        verify_signature(signature, bytes(47) + b"\1")


def test_each_changed_byte_of_the_cose_structure_is_refused(key_files):
    signature = decode_signature(load_signer(*key_files()).sign(bytes(48)))
    for index in range(len(signature.cose)):
        damaged = bytearray(signature.cose)
        damaged[index] ^= 1
        with pytest.raises(VerificationError):
            verify_signature(EifSignature(signature.certificate_pem, bytes(damaged)), bytes(48))


def test_certificate_of_another_key_is_refused(key_files):
    good = decode_signature(load_signer(*key_files()).sign(bytes(48)))
    other = decode_signature(load_signer(*key_files(name="other")).sign(bytes(48)))
    p256 = decode_signature(load_signer(*key_files(ec.generate_private_key(CURVES[0]), "p256")).sign(bytes(48)))
    for certificate in (other, p256):
        with pytest.raises(VerificationError):
            verify_signature(EifSignature(certificate.certificate_pem, good.cose), bytes(48))


def test_expired_certificate_is_refused(key_files):
    signature = decode_signature(load_signer(*key_files()).sign(bytes(48)))
    verify_validity(signature, datetime.datetime(2030, 1, 1, tzinfo=datetime.UTC))
    for year in (2019, 2041):
        with pytest.raises(VerificationError):
            verify_validity(signature, datetime.datetime(year, 1, 1, tzinfo=datetime.UTC))


def test_keys_that_cannot_sign_are_refused(tmp_path, key_files):
    certificate, key = key_files()
    rsa_files = key_files(rsa.generate_private_key(65537, 2048), "rsa")
    other_curve = key_files(ec.generate_private_key(ec.BrainpoolP256R1()), "brainpool")
    _, other_key = key_files(name="other")
    (tmp_path / "empty").write_bytes(b"")
    for files in [
        rsa_files,
        other_curve,
        (certificate, other_key),
        (certificate, "missing"),
        ("missing", key),
        (certificate, str(tmp_path / "empty")),
        (str(tmp_path / "empty"), key),
        (key, certificate),
    ]:
        with pytest.raises(InputError):
            load_signer(*files)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200) | st.recursive(st.integers(-1, 300) | st.text(max_size=5), st.lists).map(cbor2.dumps))
def test_any_signature_section_is_decoded_or_refused(data):
    with pytest.raises(InputError):
        decode_signature(data)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_any_cose_is_refused(data):
    with pytest.raises(VerificationError):
        verify_signature(EifSignature(b"", data), bytes(48))
