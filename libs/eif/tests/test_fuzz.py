# SPDX-License-Identifier: Apache-2.0
"""Whatever the bytes: an answer or one of our errors, never a traceback, never a hang, never half a file."""

import datetime
import gzip
import io
import os
import shutil
import zlib

import pytest
import zstandard
from cryptography.hazmat.primitives.asymmetric import ec
from enclavekit_core.errors import EnclavekitError
from enclavekit_eif.check import check_eif
from enclavekit_eif.cpio import CpioWriter, iter_cpio
from enclavekit_eif.crc import combine
from enclavekit_eif.describe import describe_eif
from enclavekit_eif.detached import DetachedSigner
from enclavekit_eif.diff import diff_eifs, render_difference
from enclavekit_eif.metadata import make_metadata
from enclavekit_eif.reader import read_eif
from enclavekit_eif.sign import sign_eif
from enclavekit_eif.signature import load_signer
from enclavekit_eif.size import size_of
from enclavekit_eif.verify import pcrs_of, verify_eif
from enclavekit_eif.writer import write_eif
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

AT = datetime.datetime(2030, 1, 1, tzinfo=datetime.UTC)
SHORT = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
LONG = settings(max_examples=5000, suppress_health_check=[HealthCheck.function_scoped_fixture])


def make_archive():
    out = io.BytesIO()
    with CpioWriter(out) as writer:
        writer.add_file(b"init", b"#!/bin/sh\n", mode=0o755)
        writer.add_symlink(b"link", b"init")
        writer.add_file(b"rootfs/app", b"app" * 30)
    return out.getvalue()


ARCHIVE = make_archive()
FIXED_KEY = ec.derive_private_key(12345, ec.SECP384R1())
NAMES = st.sampled_from(["PCR0", "pcr8", "Measurements"])
# where a change reaches the code behind the structure's checks: replace some bytes, cut some, put some in
EDITS = st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 8), st.binary(max_size=8)), min_size=1, max_size=4)


def edited(data, edits):
    for position, cut, added in edits:
        position %= len(data) + 1
        data = data[:position] + added + data[position + cut :]
    return data


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    """Paths of a signed image with gzip and one with zstd."""
    work = tmp_path_factory.mktemp("fuzz")
    (work / "kernel").write_bytes(b"kernel")
    made = []
    for name, compress in (("gzip", gzip.compress), ("zstd", zstandard.compress)):
        (work / name).write_bytes(compress(ARCHIVE))
        made.append(work / f"{name}.eif")
        write_eif(
            made[-1],
            kernel=work / "kernel",
            cmdline=b"console=ttyS0",
            ramdisks=[work / name, work / name],
            metadata=make_metadata("fuzz", "1"),
        )
    return work, made


def use_everything(path, good):
    """Run all that reads an image; errors of ours are the only ones."""

    def verify():
        with read_eif(path) as eif:
            verify_eif(eif, pcrs={0: bytes(48)}, at=AT)

    def describe():
        with read_eif(path) as eif:
            describe_eif(eif)

    def diff():
        for difference in (*diff_eifs(path, good), *diff_eifs(good, path)):
            assert render_difference(difference).isprintable()

    for use in (verify, describe, diff, lambda: check_eif(path, at=AT), lambda: size_of(path)):
        try:
            use()
        except EnclavekitError as exc:
            assert "\n" not in str(exc)


def damage_image(samples, number, edits):
    work, made = samples
    good = made[number]
    path = work / "edited"
    path.write_bytes(edited(good.read_bytes(), edits))
    use_everything(path, good)


@SHORT
@given(number=st.integers(0, 1), edits=EDITS)
def test_damaged_images(samples, number, edits):
    damage_image(samples, number, edits)


@pytest.mark.long
@LONG
@given(number=st.integers(0, 1), edits=EDITS)
def test_damaged_images_for_long(samples, number, edits):
    damage_image(samples, number, edits)


def damage_sections(samples, archive_edits, metadata_edits):
    """Damage what sections hold, and leave the structure right, so that the readers inside are reached."""
    work, made = samples
    (work / "ramdisk").write_bytes(edited(ARCHIVE, archive_edits))
    (work / "packed").write_bytes(edited(gzip.compress(ARCHIVE), metadata_edits))
    path = work / "inside.eif"
    try:
        write_eif(
            path,
            kernel=work / "kernel",
            cmdline=edited(b"console=ttyS0", metadata_edits),
            ramdisks=[work / "ramdisk", work / "packed"],
            metadata=make_metadata("fuzz", "1"),
        )
    except EnclavekitError:
        return
    use_everything(path, made[0])


@SHORT
@given(EDITS, EDITS)
def test_damaged_sections(samples, archive_edits, metadata_edits):
    damage_sections(samples, archive_edits, metadata_edits)


@pytest.mark.long
@LONG
@given(EDITS, EDITS)
def test_damaged_sections_for_long(samples, archive_edits, metadata_edits):
    damage_sections(samples, archive_edits, metadata_edits)


def read_archive(data):
    try:
        for entry in iter_cpio(io.BytesIO(data)):
            while entry.data.read(10):
                pass
    except EnclavekitError as exc:
        assert "\n" not in str(exc)


PACKINGS = st.sampled_from([bytes, gzip.compress, zstandard.compress])


@SHORT
@given(PACKINGS, EDITS, EDITS)
def test_damaged_archives(pack, before, after):
    read_archive(edited(pack(edited(ARCHIVE, before)), after))


@pytest.mark.long
@LONG
@given(PACKINGS, EDITS, EDITS)
def test_damaged_archives_for_long(pack, before, after):
    read_archive(edited(pack(edited(ARCHIVE, before)), after))


@SHORT
@given(signature=st.binary(max_size=150), edits=EDITS)
def test_no_made_up_signature_is_attached(samples, key_files, signature, edits):
    work, made = samples
    signer = load_signer(*key_files(FIXED_KEY))
    image = work / "image.eif"
    shutil.copy(made[0], image)
    before, names = image.read_bytes(), set(os.listdir(work))
    for data, pem in ((signature, signer.certificate_pem), (signature, edited(signer.certificate_pem, edits))):
        with pytest.raises(EnclavekitError):
            sign_eif(image, image, DetachedSigner(pem, data), at=AT)
    assert image.read_bytes() == before
    assert set(os.listdir(work)) == names


@SHORT
@given(st.recursive(st.none() | st.integers() | st.text(), lambda below: st.dictionaries(st.text() | NAMES, below)))
def test_any_document_of_pcrs_is_read_or_refused(document):
    try:
        assert set(pcrs_of(document)) <= {0, 1, 2, 8}
    except ValueError:
        pass


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_crcs_are_joined(left, right):
    assert combine(zlib.crc32(left), zlib.crc32(right), len(right)) == zlib.crc32(left + right)


def test_crcs_of_large_parts_are_joined():
    zeros = bytes(1 << 20)
    whole = zlib.crc32(b"header")
    tail = 0
    for _ in range(64):
        whole, tail = zlib.crc32(zeros, whole), zlib.crc32(zeros, tail)
    assert combine(zlib.crc32(b"header"), tail, 64 << 20) == whole
