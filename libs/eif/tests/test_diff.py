# SPDX-License-Identifier: Apache-2.0
"""A difference of one thing is told as that thing, and as nothing else."""

import gzip
import io
import json
import random
import struct

import pytest
import zstandard
from enclavekit_eif.archive_index import BLOCK_BYTES
from enclavekit_eif.cli import main
from enclavekit_eif.cpio import CpioWriter
from enclavekit_eif.diff import Difference, diff_eifs, render_difference
from enclavekit_eif.difference import first_difference
from enclavekit_eif.metadata import make_metadata
from enclavekit_eif.model import CRC_OFFSET
from enclavekit_eif.pack import encode_header
from enclavekit_eif.sign import sign_eif
from enclavekit_eif.signature import load_signer
from enclavekit_eif.writer import write_eif
from hypothesis import given
from hypothesis import strategies as st

LARGE = random.Random(1).randbytes(3 * BLOCK_BYTES + 17)
MEMBERS = (
    # name, data, mode, uid, mtime
    (b"init", b"#!/bin/sh\n", 0o100755, 0, 0),
    (b"rootfs/app", b"the app's own text, with a time of 12:30 in it\n", 0o100644, 0, 0),
    (b"rootfs/data", LARGE, 0o100644, 0, 0),
)


def pack(members, order=None, extra=b""):
    """A newc archive written by hand, so that any field can be wrong."""
    out = bytearray()
    members = list(members) if order is None else [members[number] for number in order]
    for ino, (name, data, mode, uid, mtime) in enumerate(members, 1):
        out += encode_header(name, ino, mode, (uid, 0), 1, mtime, len(data)) + data
        out += bytes(-len(data) % 4)
    return bytes(out + encode_header(b"TRAILER!!!", 0, 0, (0, 0), 1, 0, 0)) + extra


def changed(number, **fields):
    names = ("name", "data", "mode", "uid", "mtime")
    members = list(MEMBERS)
    values = dict(zip(names, members[number], strict=True)) | fields
    members[number] = tuple(values[name] for name in names)
    return members


@pytest.fixture
def eif(tmp_path):
    """`eif(ramdisk=..., name=...)` writes an image and returns its path."""
    (tmp_path / "kernel").write_bytes(b"KERNEL" * 1000)
    count = iter(range(100))

    def make(ramdisk=None, *, kernel=None, cmdline=b"console=ttyS0 panic=30 reboot=k", metadata=None, more=()):
        number = next(count)
        paths = []
        for index, data in enumerate([pack(MEMBERS) if ramdisk is None else ramdisk, *more]):
            paths.append(tmp_path / f"ramdisk-{number}-{index}")
            paths[-1].write_bytes(data)
        if kernel is not None:
            (tmp_path / f"kernel-{number}").write_bytes(kernel)
        out = tmp_path / f"{number}.eif"
        write_eif(
            out,
            kernel=tmp_path / ("kernel" if kernel is None else f"kernel-{number}"),
            cmdline=cmdline,
            ramdisks=paths,
            metadata=metadata or make_metadata("app", "1", custom={"a": {"b": [1, 2]}}),
        )
        return out

    return make


def places(found):
    return [(difference.section, difference.member, difference.field) for difference in found]


def test_equal_images_have_no_difference(eif):
    assert diff_eifs(eif(), eif()) == []


@pytest.mark.parametrize(
    ("fields", "field", "left", "right"),
    [
        ({"mtime": 1_700_000_000}, "mtime", "0", "1700000000"),
        ({"mode": 0o100600}, "mode", "100644", "100600"),
        ({"uid": 1000}, "uid", "0", "1000"),
    ],
)
def test_one_field_of_one_member(eif, fields, field, left, right):
    assert diff_eifs(eif(), eif(pack(changed(1, **fields)))) == [
        Difference("ramdisk 0", "rootfs/app", field, left, right)
    ]


def test_the_same_inside_gzip_and_zstd(eif):
    plain, other = pack(MEMBERS), pack(changed(1, mtime=9))
    for compress in (lambda data: gzip.compress(data, mtime=0), zstandard.ZstdCompressor().compress):
        found = diff_eifs(eif(compress(plain)), eif(compress(other)))
        assert found == [Difference("ramdisk 0", "rootfs/app", "mtime", "0", "9")]


def test_content_is_located_to_the_byte_with_what_is_there(eif):
    data = MEMBERS[1][1].replace(b"12:30", b"12:31")
    (found,) = diff_eifs(eif(), eif(pack(changed(1, data=data))))
    assert found.field == f"content at {MEMBERS[1][1].index(b'12:30') + 4}"
    assert "12:30" in found.left
    assert "12:31" in found.right


@pytest.mark.parametrize("offset", [0, 1, BLOCK_BYTES - 1, BLOCK_BYTES, 2 * BLOCK_BYTES + 5, len(LARGE) - 1])
def test_content_of_a_large_file_is_located_in_any_block(eif, offset):
    data = bytearray(LARGE)
    data[offset] ^= 0x80
    found = diff_eifs(eif(), eif(pack(changed(2, data=bytes(data)))))
    assert places(found) == [("ramdisk 0", "rootfs/data", f"content at {offset}")]


def test_a_longer_file_differs_in_size_and_where_the_other_ends(eif):
    found = diff_eifs(eif(), eif(pack(changed(2, data=LARGE + b"more"))))
    assert places(found) == [
        ("ramdisk 0", "rootfs/data", "size"),
        ("ramdisk 0", "rootfs/data", f"content at {len(LARGE)}"),
    ]
    assert found[1].left == "the end"
    whole = LARGE[: 2 * BLOCK_BYTES]  # ends with its block: there is no block to compare the rest with
    found = diff_eifs(eif(pack(changed(2, data=whole))), eif())
    assert found[1].field == f"content at {len(whole)}"


def test_a_shuffled_order_is_one_difference(eif):
    found = diff_eifs(eif(), eif(pack(MEMBERS, order=[0, 2, 1])))
    assert found == [Difference("ramdisk 0", "", "order of members, from no. 2", "rootfs/app", "rootfs/data")]


def test_members_that_one_image_lacks(eif):
    found = diff_eifs(eif(pack(MEMBERS[:2])), eif(pack([MEMBERS[0], MEMBERS[2]])))
    assert found == [
        Difference("ramdisk 0", "rootfs/app", "member", "present", "absent"),
        Difference("ramdisk 0", "rootfs/data", "member", "absent", "present"),
    ]


def test_a_name_that_comes_twice_is_told_apart(eif):
    found = diff_eifs(eif(pack([*MEMBERS, MEMBERS[1]])), eif(pack([*MEMBERS, (*MEMBERS[1][:4], 5)])))
    assert found == [Difference("ramdisk 0", "rootfs/app (no. 2)", "mtime", "0", "5")]


def test_inode_numbers_alone(eif):
    archive = pack(MEMBERS)
    other = archive.replace(b"070701" + b"00000001", b"070701" + b"00000063", 1)
    assert diff_eifs(eif(archive), eif(other)) == [Difference("ramdisk 0", "init", "ino", "1", "99")]


def test_another_compression_level_is_told_as_that_only(eif):
    plain = pack(changed(2, data=b"compressible " * 10000))
    (found,) = diff_eifs(eif(gzip.compress(plain, 1, mtime=0)), eif(gzip.compress(plain, 8, mtime=0)))[-1:]
    assert found.field == "gzip only: what it unpacks to is the same"
    levels = [zstandard.ZstdCompressor(level=level).compress(plain) for level in (1, 19)]
    (found,) = diff_eifs(*map(eif, levels))
    assert found.field == "zstd only: what it unpacks to is the same"
    (found,) = diff_eifs(eif(plain), eif(levels[0]))
    assert (found.field, found.left, found.right) == ("compression", "none", "zstd")


def test_a_clock_in_a_gzip_header(eif):
    first, second = (gzip.compress(pack(MEMBERS), mtime=time) for time in (1, 1_700_000_000))
    found = diff_eifs(eif(first), eif(second))
    assert found[0] == Difference("ramdisk 0", "", "gzip header: mtime", "1", "1700000000")
    assert len(found) == 2


def test_padding_after_an_archive_is_not_overlooked(eif):
    found = diff_eifs(eif(pack(MEMBERS)), eif(pack(MEMBERS, extra=bytes(512))))
    assert places(found) == [("ramdisk 0", "", "the archive's bytes")]


def test_what_is_no_archive_is_compared_as_bytes(eif):
    found = diff_eifs(eif(b"no archive, A"), eif(b"no archive, B"))
    assert places(found)[-1] == ("ramdisk 0", "", "content at 12")


def test_other_sections(eif):
    assert diff_eifs(eif(), eif(cmdline=b"console=ttyS0 panic=1 reboot=k")) == [
        Difference("cmdline", "", "word 2", "panic=30", "panic=1")
    ]
    assert diff_eifs(eif(), eif(metadata=make_metadata("app", "1", custom={"a": {"b": [1, 3]}}))) == [
        Difference("metadata", "CustomMetadata.a.b[1]", "value", "2", "3")
    ]
    assert diff_eifs(eif(), eif(metadata=make_metadata("app", "1", build_time="T", custom={"a": {"b": [1, 2]}}))) == [
        Difference("metadata", "BuildMetadata.BuildTime", "value", "'1970-01-01T00:00:00+00:00'", "'T'")
    ]
    kernel = b"KERNEL" * 1000
    found = diff_eifs(eif(), eif(kernel=kernel[:4000] + b"x" + kernel[4001:]))
    assert places(found) == [("kernel", "", "content at 4000")]
    assert places(diff_eifs(eif(), eif(more=[pack(MEMBERS)]))) == [("ramdisk 1", "", "section")]


def test_metadata_in_another_order_of_keys(eif):
    one, other = (make_metadata("app", "1", custom=custom) for custom in ({"a": 1, "b": 2}, {"b": 2, "a": 1}))
    ((section, _, field),) = places(diff_eifs(eif(metadata=one), eif(metadata=other)))
    assert (section, field.split(" at ")[0]) == ("metadata", "content")


def test_a_stored_crc_alone(eif):
    damaged = eif()
    raw = bytearray(damaged.read_bytes())
    (crc,) = struct.unpack_from(">I", raw, CRC_OFFSET)
    struct.pack_into(">I", raw, CRC_OFFSET, crc ^ 1)
    damaged.write_bytes(raw)
    assert places(diff_eifs(eif(), damaged)) == [("header", "", "stored CRC")]


def test_signatures(eif, tmp_path, key_files):
    image, one, other = eif(), tmp_path / "one", tmp_path / "other"
    sign_eif(image, one, load_signer(*key_files(name="one")))
    sign_eif(image, other, load_signer(*key_files(name="other")))
    assert places(diff_eifs(image, one)) == [("signature", "", "section")]
    fields = [field for section, _, field in places(diff_eifs(one, other))]
    assert fields[:2] == ["certificate", "PCR8"]
    assert all(section == "signature" for section, _, _ in places(diff_eifs(one, other)))


def test_many_differences_are_cut(eif, monkeypatch):
    monkeypatch.setattr("enclavekit_eif.diff_ramdisk.MAX_SHOWN", 2)
    members = [(b"f%d" % number, b"x", 0o100644, 0, 0) for number in range(5)]
    others = [(*member[:4], 1) for member in members]
    assert len(diff_eifs(eif(pack(members)), eif(pack(others)))) == 3


def test_the_command(eif, capfdbinary):
    one, other = str(eif()), str(eif(pack(changed(1, mtime=7))))
    assert main(["diff", one, one]) == 0
    assert capfdbinary.readouterr().out == b""
    assert main(["diff", one, other]) == 1
    assert capfdbinary.readouterr().out == b"ramdisk 0: rootfs/app: mtime: 0 -> 7\n"
    assert main(["diff", "--json", one, other]) == 1
    told = json.loads(capfdbinary.readouterr().out)
    assert (told["Equal"], len(told["Differences"])) == (False, 1)
    assert main(["diff", one, "/nowhere"]) == 2


def test_names_from_an_archive_cannot_write_to_the_terminal():
    from enclavekit_eif.archive_index import shown_key

    assert "\x1b" not in render_difference(Difference("ramdisk 0", shown_key((b"a\x1b[2J\n", 0)), "mtime", "0", "1"))


@given(st.binary(max_size=40), st.binary(max_size=40))
def test_first_difference_is_the_first(left, right):
    expected = next((i for i in range(max(len(left), len(right))) if left[i : i + 1] != right[i : i + 1]), None)
    assert first_difference(left, right) == expected
    assert first_difference(left + left, left + right) == (None if left == right else len(left) + expected)


def test_our_writer_gives_equal_archives_whatever_the_order_of_adding(eif):
    archives = []
    for names in ([b"a", b"b"], [b"b", b"a"]):
        out = io.BytesIO()
        with CpioWriter(out) as writer:
            for name in names:
                writer.add_file(name, name)
        archives.append(out.getvalue())
    assert diff_eifs(*map(eif, archives)) == []
