# SPDX-License-Identifier: Apache-2.0
import json
import os
import struct

import pytest
from enclavekit_core.errors import InputError
from enclavekit_eif.describe import describe_eif
from enclavekit_eif.measure import EMPTY_PCR, measure, pcr_of
from enclavekit_eif.model import ARCH_X86_64, HEADER, SECTION_HEADER, Section, SectionType, encode_header, plan_sections
from enclavekit_eif.reader import read_eif
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

METADATA = json.dumps(
    {
        "ImageName": "n",
        "ImageVersion": "1",
        "BuildMetadata": dict.fromkeys(
            ("BuildTime", "BuildTool", "BuildToolVersion", "OperatingSystem", "KernelVersion"), ""
        ),
        "DockerInfo": None,
        "CustomMetadata": None,
    }
).encode()
GOOD = [(1, b"K"), (2, b"C"), (5, METADATA), (3, b"R0"), (3, b"R1")]


def assemble(parts, *, version=4, flags=0, count=None):
    """Bytes of an EIF with any sections, good or not; the CRC is left zero."""
    sections, offset = [], HEADER.size
    for _kind, body in parts:
        sections.append(Section(SectionType.KERNEL, offset, len(body)))
        offset = sections[-1].end
    header = bytearray(encode_header(flags, sections[:32]))
    struct.pack_into(">H", header, 4, version)
    if count is not None:
        struct.pack_into(">H", header, 0x1A, count)
    return bytes(header) + b"".join(SECTION_HEADER.pack(kind, 0, len(body)) + body for kind, body in parts)


def patched(offset, form, value):
    data = bytearray(assemble(GOOD))
    struct.pack_into(form, data, offset, value)
    return bytes(data)


@pytest.mark.parametrize("name", ["synthetic-unsigned.eif", "synthetic-signed.eif"])
def test_samples_measure_as_expected(data, name):
    expected = json.loads((data / "synthetic-expected.json").read_text())[name]
    with read_eif(data / name) as eif:
        measured = measure(eif)
        assert f"{eif.crc32:08x}" == expected["crc32"]
        assert measured.crc_ok
        assert {key: value for key, value in measured.to_json().items() if key != "HashAlgorithm"} == {
            key: value for key, value in expected.items() if key.startswith("PCR")
        }
        assert (eif.version, eif.arch, eif.cmdline()) == (4, ARCH_X86_64, b"CMDLINE")
        assert eif.open_section(eif.kernel).read() == b"KERNEL"
        assert [eif.open_section(section).read() for section in eif.ramdisks] == [b"RAMDISK0", b"RAMDISK1"]
        assert eif.open_ramdisks().read() == b"RAMDISK0RAMDISK1"
        assert eif.metadata["ImageName"] == "synthetic"


def test_section_readers_are_bounded_and_independent(image):
    with read_eif(image) as eif:
        first, second = eif.open_section(eif.kernel), eif.open_section(eif.kernel)
        assert (first.read(2), second.read(3), first.read(100), second.read()) == (b"KE", b"KER", b"RNEL", b"NEL")


def test_description_has_the_keys_of_nitro_cli_in_its_order(data):
    real = json.loads((data / "nitro-cli-describe-eif.json").read_text())
    with read_eif(data / "synthetic-unsigned.eif") as eif:
        ours = describe_eif(eif)
    assert list(ours) == list(real)
    assert list(ours["Measurements"]) == list(real["Measurements"])
    assert list(ours["Metadata"]) == list(real["Metadata"])


def test_description_of_a_signed_image(data):
    with read_eif(data / "synthetic-signed.eif") as eif:
        ours = describe_eif(eif)
    keys = "EifVersion Measurements IsSigned SigningCertificate CheckCRC SignatureCheck ImageName ImageVersion Metadata"
    assert list(ours) == keys.split()
    assert (ours["IsSigned"], ours["CheckCRC"], ours["SignatureCheck"]) == (True, True, True)
    certificate = ours["SigningCertificate"]
    assert list(certificate) == ["IssuerName", "Algorithm", "NotBefore", "NotAfter", "Signature"]
    assert certificate["IssuerName"] == {"commonName": "synthetic EIF signer"}
    assert (certificate["Algorithm"], certificate["NotBefore"]) == ("ecdsa-with-SHA384", "Jan  1 00:00:00 2020 GMT")


def test_pcr2_of_one_ramdisk_is_that_of_nothing(tmp_path):
    path = tmp_path / "one.eif"
    path.write_bytes(assemble(GOOD[:-1]))
    measured = measure(read_eif(path))
    # seen in real attestation documents of images with one ramdisk
    assert measured.pcr2.hex().startswith("21b9efbc184807662e966d34f3908213")
    assert measured.pcr2 == EMPTY_PCR
    assert measured.pcr0 == measured.pcr1 == pcr_of([b"K", b"C", b"R0"])


def test_sections_are_measured_in_file_order(tmp_path):
    path = tmp_path / "order.eif"
    path.write_bytes(assemble([(1, b"K"), (3, b"R0"), (3, b"R1"), (2, b"C"), (5, METADATA)]))
    measured = measure(read_eif(path))
    assert measured.pcr0 == pcr_of([b"K", b"R0", b"R1", b"C"])
    assert measured.pcr1 == pcr_of([b"K", b"R0", b"C"])
    assert measured.pcr2 == pcr_of([b"R1"])


def test_large_sections_measure_like_small_ones(tmp_path):
    kernel, ramdisk = os.urandom((1 << 20) - 5), os.urandom((2 << 20) + 17)
    path = tmp_path / "large.eif"
    path.write_bytes(assemble([(1, kernel), (2, b"C"), (5, METADATA), (3, ramdisk), (3, kernel)]))
    measured = measure(read_eif(path))
    assert measured.pcr0 == pcr_of([kernel, b"C", ramdisk, kernel])
    assert measured.pcr1 == pcr_of([kernel, b"C", ramdisk])
    assert measured.pcr2 == pcr_of([kernel])


@pytest.mark.parametrize(
    "parts, version",
    [
        (GOOD, 4),
        ([(2, b"C"), *GOOD[:1], *GOOD[2:]], 4),
        ([part for part in GOOD if part[0] != 5], 3),
        ([part for part in GOOD if part[0] != 5], 2),
        ([*GOOD[:4], *GOOD[4:] * 28], 4),
    ],
    ids=["plain", "cmdline first", "version 3", "version 2", "32 sections"],
)
def test_good_images_are_read(tmp_path, parts, version):
    path = tmp_path / "good.eif"
    path.write_bytes(assemble(parts, version=version))
    assert [section.type for section in read_eif(path).sections] == [kind for kind, _body in parts]


@pytest.mark.parametrize(
    "content, cause",
    [
        (b"", "less than the header"),
        (b"\x7fELF" + bytes(1000), "not an EIF"),
        (patched(4, ">H", 5), "version 5"),
        (patched(4, ">H", 1), "version 1"),
        (patched(6, ">H", 2), "flags"),
        (patched(0x1A, ">H", 1), "1 sections"),
        (patched(0x1A, ">H", 33), "33 sections"),
        (patched(0x1A, ">H", 4), "goes on after"),
        (patched(0x1C, ">Q", 549), "in the table"),
        (patched(0x11C, ">Q", 2), "in its header"),
        (patched(0x224, ">H", 0), "unknown type 0"),
        (patched(0x224, ">H", 6), "unknown type 6"),
        (patched(0x226, ">H", 1), "flags"),
        (patched(0x228, ">Q", 1 << 63), "in its header"),
        (assemble(GOOD) + b"x", "after the last section"),
        (assemble(GOOD[1:]), "0 kernel"),
        (assemble(GOOD[:1] + GOOD), "2 kernel"),
        (assemble(GOOD[:1] + GOOD[2:]), "0 cmdline"),
        (assemble([*GOOD, (2, b"D")]), "2 cmdline"),
        (assemble(GOOD[:3]), "no ramdisk"),
        (assemble([GOOD[3], *GOOD]), "before the kernel"),
        (assemble([part for part in GOOD if part[0] != 5]), "no metadata"),
        (assemble([*GOOD, GOOD[2]]), "2 metadata"),
        (assemble(GOOD, version=3), "in version 3"),
        (assemble([*GOOD, (4, b""), (4, b"")]), "2 signature"),
        (assemble([*GOOD, (4, bytes(32769))]), "more than 32768"),
        (assemble([(1, b""), *GOOD[1:]]), "kernel section is empty"),
        (assemble([*GOOD[:2], (5, b"{}"), *GOOD[3:]]), "ImageName is missing"),
        (assemble([*GOOD[:2], (5, b"[" * 100000), *GOOD[3:]]), "metadata"),
        (assemble([*GOOD[:2], (5, METADATA.replace(b"null", b"NaN")), *GOOD[3:]]), "metadata"),
        (assemble([*GOOD[:2], (5, b"\xff"), *GOOD[3:]]), "metadata"),
        (assemble([*GOOD[:2], (5, METADATA.replace(b'"1"', b"1")), *GOOD[3:]]), "ImageVersion is not a string"),
    ],
)
def test_malformed_images_are_refused(tmp_path, content, cause):
    path = tmp_path / "bad.eif"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_eif(path)
    assert str(caught.value).startswith(f"cannot read EIF {path}: ")
    assert cause in caught.value.reason


def test_what_is_no_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "missing", tmp_path, tmp_path / "fifo", "nul\0byte"):
        with pytest.raises(InputError):
            read_eif(path)


def test_truncation_at_every_index_is_refused(tmp_path, data):
    whole = (data / "synthetic-signed.eif").read_bytes()
    path = tmp_path / "short.eif"
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(InputError):
            read_eif(path)


def test_truncation_while_measuring_is_an_error(tmp_path, image):
    eif = read_eif(image)
    os.truncate(image, image.stat().st_size - 1)
    with pytest.raises(InputError, match="truncated"):
        measure(eif)


@pytest.mark.parametrize("name", ["synthetic-unsigned.eif", "synthetic-signed.eif"])
def test_every_flipped_bit_is_noticed(tmp_path, data, name):
    whole = (data / name).read_bytes()
    path = tmp_path / "flipped.eif"
    for index in range(len(whole)):
        damaged = bytearray(whole)
        damaged[index] ^= 1 << index % 8
        path.write_bytes(damaged)
        try:
            noticed = not measure(read_eif(path)).crc_ok
        except InputError:
            noticed = True
        assert noticed, index


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    parts=st.lists(st.tuples(st.integers(0, 7), st.binary(max_size=40) | st.just(METADATA)), max_size=8),
    cut=st.integers(0, 40),
    version=st.integers(0, 6),
)
def test_any_sections_are_read_or_refused(tmp_path, parts, cut, version):
    path = tmp_path / "any.eif"
    content = assemble(parts, version=version)
    path.write_bytes(content[: len(content) - cut])
    try:
        eif = read_eif(path)
        measure(eif)
    except InputError:
        return
    assert cut == 0
    assert [(section.type, eif.open_section(section).read()) for section in eif.sections] == parts


def test_layout_is_contiguous():
    sections = plan_sections([(SectionType.KERNEL, 5), (SectionType.CMDLINE, 0), (SectionType.RAMDISK, 7)])
    assert [(section.offset, section.data_offset, section.end) for section in sections] == [
        (548, 560, 565),
        (565, 577, 577),
        (577, 589, 596),
    ]
