# SPDX-License-Identifier: Apache-2.0
"""verify, check and size: what they say of good images and of images with one fault."""

import datetime
import gzip
import io
import json
import struct

import pytest
import zstandard
from enclavekit_eif.check import Severity, check_eif
from enclavekit_eif.cli import main
from enclavekit_eif.cpio import CpioWriter
from enclavekit_eif.measure import measure
from enclavekit_eif.metadata import make_metadata
from enclavekit_eif.model import CRC_OFFSET
from enclavekit_eif.pack import encode_header
from enclavekit_eif.reader import read_eif
from enclavekit_eif.sign import sign_eif
from enclavekit_eif.signature import load_signer
from enclavekit_eif.size import KERNEL_MIB, MIB, size_of
from enclavekit_eif.writer import write_eif

AT = datetime.datetime(2030, 1, 1, tzinfo=datetime.UTC)
AT_TEXT = "2030-01-01"
BZIMAGE = bytes(0x1FE) + b"\x55\xaa" + b"\x00\x00HdrS" + bytes(4000)
ARM_IMAGE = bytes(0x38) + b"ARM\x64" + bytes(4000)
CMDLINE = b"reboot=k panic=30 pci=off console=ttyS0"


def pack(files, modes=()):
    out = io.BytesIO()
    with CpioWriter(out) as writer:
        for name, data in files.items():
            writer.add_file(name, data, mode=dict(modes).get(name, 0o755))
    return out.getvalue()


FRAMEWORK = pack({b"init": b"#!/bin/sh\n"})
APP = pack({b"rootfs/app": b"app" * 5000})
GZIP = gzip.compress(FRAMEWORK, mtime=0)
ODD_GZIP = GZIP + bytes((1 - len(GZIP)) % 4)  # the kernel finds an uncompressed archive at a multiple of 4 only


@pytest.fixture
def eif(tmp_path):
    """`eif(...)` writes a good image, or one with what is given instead, and returns its path."""

    def make(name="image.eif", *, kernel=BZIMAGE, cmdline=CMDLINE, ramdisks=(FRAMEWORK, APP), arch="x86_64", **words):
        (tmp_path / "kernel").write_bytes(kernel)
        paths = []
        for index, data in enumerate(ramdisks):
            paths.append(tmp_path / f"ramdisk-{index}")
            paths[-1].write_bytes(data)
        metadata = make_metadata("app", "1", **({"kernel_version": "6.6.79"} | words))
        write_eif(
            tmp_path / name, kernel=tmp_path / "kernel", cmdline=cmdline, ramdisks=paths, metadata=metadata, arch=arch
        )
        return tmp_path / name

    return make


def names(found):
    return [finding.name for finding in found]


def test_a_good_image_has_no_finding(eif, capfd):
    assert check_eif(eif()) == []
    assert main(["check", str(eif())]) == 0


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ({"kernel": b"no kernel"}, "kernel-format"),
        ({"kernel": b"\x7fELF" + bytes(4000)}, "kernel-format"),
        ({"kernel": gzip.compress(ARM_IMAGE), "arch": "aarch64"}, "kernel-format"),
        ({"arch": "aarch64"}, "kernel-arch"),
        ({"kernel": ARM_IMAGE}, "kernel-arch"),
        ({"custom": {"kernel": {"name": "Debian", "nitro-capable": False}}}, "kernel-emulator-only"),
        ({"ramdisks": (APP, APP)}, "init"),
        ({"ramdisks": (pack({b"init": b""}, {b"init": 0o644}), APP)}, "init"),
        ({"ramdisks": (FRAMEWORK, b"no archive")}, "ramdisk"),
        ({"ramdisks": (FRAMEWORK, APP[:-200])}, "ramdisk"),
        ({"ramdisks": (FRAMEWORK, b"\xfd7zXZ\0")}, "ramdisk"),
        ({"ramdisks": (ODD_GZIP, APP)}, "ramdisk-alignment"),
        ({"ramdisks": (zstandard.compress(FRAMEWORK),) * 2, "kernel_version": "4.14.256"}, "ramdisk-zstd"),
        ({"cmdline": CMDLINE + b" x" * 1000}, "cmdline-length"),
    ],
)
def test_each_fault_is_an_error_with_a_cure(eif, words, name, capfdbinary):
    path = eif(**words)
    errors = [finding for finding in check_eif(path) if finding.severity is Severity.ERROR]
    assert names(errors) == [name]
    assert errors[0].cure
    assert errors[0].code.startswith("E")
    assert main(["check", "--json", str(path)]) == 6
    told = json.loads(capfdbinary.readouterr().out)
    assert (told["Good"], told["Findings"][0]["name"]) == (False, name)


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ({"cmdline": b"panic=30 reboot=k"}, "cmdline-console"),
        ({"cmdline": b"console=ttyS0 reboot=k"}, "cmdline-panic"),
        ({"cmdline": b"console=ttyS0 panic=30"}, "cmdline-reboot"),
        ({"cmdline": CMDLINE + b"\n"}, "cmdline-space"),
        ({"ramdisks": (FRAMEWORK,)}, "one-ramdisk"),
        ({"ramdisks": (zstandard.compress(FRAMEWORK),) * 2, "kernel_version": "Unknown"}, "ramdisk-zstd"),
    ],
)
def test_lesser_faults_leave_the_image_usable(eif, words, name):
    path = eif(**words)
    assert names(check_eif(path)) == [name]
    assert main(["check", str(path)]) == 0


def test_zeros_may_bring_an_archive_to_its_place(eif):
    assert names(check_eif(eif(ramdisks=(GZIP + bytes(-len(GZIP) % 4), APP)))) == []
    assert names(check_eif(eif(ramdisks=(ODD_GZIP, bytes(3) + APP)))) == []


def test_what_the_readers_refuse_is_a_finding(eif, tmp_path):
    good = eif().read_bytes()
    for number, raw in enumerate((b"", good[:100], good[:-1], b"X" + good[1:], good + b"x")):
        path = tmp_path / f"bad-{number}"
        path.write_bytes(raw)
        (found,) = check_eif(path)
        assert (found.severity, found.name, found.code) == (Severity.ERROR, "structure", "E35")
    assert main(["check", str(tmp_path / "missing")]) == 2


def test_a_wrong_crc_and_a_bad_signature(eif, tmp_path, key_files):
    image = eif()
    sign_eif(image, image, load_signer(*key_files()), at=AT)
    assert names(check_eif(image, at=AT)) == []
    raw = bytearray(image.read_bytes())
    struct.pack_into(">I", raw, CRC_OFFSET, 0)
    (tmp_path / "crc").write_bytes(raw)
    assert names(check_eif(tmp_path / "crc", at=AT)) == ["crc"]
    position = raw.index(b"app" * 5)
    raw[position] ^= 1
    (tmp_path / "both").write_bytes(raw)
    assert names(check_eif(tmp_path / "both", at=AT)) == ["crc", "signature"]


def test_the_certificate_is_judged_at_the_time_given(eif, key_files):
    image = eif()
    sign_eif(image, image, load_signer(*key_files()), at=AT)
    for at, severity in [
        (datetime.datetime(2019, 1, 1, tzinfo=datetime.UTC), Severity.ERROR),
        (datetime.datetime(2041, 1, 1, tzinfo=datetime.UTC), Severity.ERROR),
        (datetime.datetime(2040, 10, 20, tzinfo=datetime.UTC), Severity.WARNING),
    ]:
        (found,) = check_eif(image, at=at)
        assert (found.name, found.severity) == ("certificate", severity)


def verify(capfdbinary, *argv):
    code = main(["verify", "--json", *map(str, argv)])
    told = json.loads(capfdbinary.readouterr().out)
    assert told["Verified"] == (code == 0)
    return code, {step["name"]: step["result"] for step in told["Steps"]}


def test_verify_an_unsigned_image(eif, key_files, capfdbinary, tmp_path):
    image = eif()
    assert verify(capfdbinary, image) == (0, {"structure": "ok", "crc": "ok", "signature": "skipped"})
    code, steps = verify(capfdbinary, image, "--certificate", key_files()[0])
    assert (code, steps["signature"]) == (6, "failed")
    code, steps = verify(capfdbinary, image, "--pcr8", "00" * 48)
    assert (code, steps["signature"], steps["pcr8"]) == (6, "failed", "failed")


def test_verify_whose_signature_it_is(eif, key_files, capfdbinary):
    image = eif()
    mine, other = key_files(name="mine"), key_files(name="other")
    measured = sign_eif(image, image, load_signer(*mine), at=AT)
    at = ["--at", AT_TEXT]
    assert verify(capfdbinary, image, *at)[1]["signer"] == "skipped"
    assert verify(capfdbinary, image, *at, "--certificate", mine[0])[1]["signer"] == "ok"
    assert verify(capfdbinary, image, *at, "--pcr8", measured.pcr8.hex().upper())[0] == 0
    code, steps = verify(capfdbinary, image, *at, "--certificate", other[0])
    assert (code, steps["signature"], steps["signer"]) == (6, "ok", "failed")
    assert verify(capfdbinary, image, "--at", "2041-01-01")[1]["validity"] == "failed"


def test_verify_registers_from_flags_and_files(eif, capfdbinary, tmp_path):
    image = eif()
    with read_eif(image) as opened:
        measured = measure(opened)
    right, wrong = f"0={measured.pcr0.hex()}", f"1={measured.pcr0.hex()}"
    assert verify(capfdbinary, image, "--pcr", right)[1]["pcr0"] == "ok"
    code, steps = verify(capfdbinary, image, "--pcr", right, "--pcr", wrong)
    assert (code, steps["pcr0"], steps["pcr1"]) == (6, "ok", "failed")
    pcrs = tmp_path / "pcr.json"
    for document in (measured.to_json(), {"Measurements": measured.to_json()}):
        pcrs.write_text(json.dumps(document))
        assert verify(capfdbinary, image, "--pcrs", pcrs)[0] == 0
    pcrs.write_text(json.dumps({"PCR2": "11" * 48}))
    assert verify(capfdbinary, image, "--pcrs", pcrs)[0] == 6
    assert main(["verify", str(image), "--pcrs", str(pcrs)]) == 6


@pytest.mark.parametrize(
    "words",
    [
        ["--pcr", "0"],
        ["--pcr", "0=12"],
        ["--pcr", "3=" + "00" * 48],
        ["--pcr", "x=" + "00" * 48],
        ["--pcr8", "zz"],
        ["--pcr", "8=" + "00" * 48, "--pcr8", "11" * 48],
        ["--certificate", "/nowhere"],
        ["--pcrs", "/nowhere"],
        ["--pcrs", "FILE"],
        ["--at", "now"],
    ],
)
@pytest.mark.parametrize("text", ["{}", "[]", '{"PCR0": 1}', '{"PCR0": "00"}', "{", '{"Measurements": null}'])
def test_verify_refuses_what_says_nothing(eif, words, text, tmp_path, capfd):
    (tmp_path / "FILE").write_text(text)
    argv = [str(tmp_path / "FILE") if word == "FILE" else word for word in words]
    assert main(["verify", str(eif()), *argv]) == 2
    assert len(capfd.readouterr().err.splitlines()) == 1


def test_a_damaged_file_does_not_verify(eif, tmp_path, capfdbinary):
    raw = bytearray(eif().read_bytes())
    raw[-5] ^= 1
    (tmp_path / "damaged").write_bytes(raw)
    code, steps = verify(capfdbinary, tmp_path / "damaged")
    assert (code, steps["crc"]) == (6, "failed")
    assert main(["verify", str(tmp_path)]) == 2


def test_size_follows_what_is_unpacked_and_not_what_is_stored(eif):
    zeros = pack({b"rootfs/zeros": bytes(100 * MIB), b"rootfs/one": b"1"})
    path = eif(ramdisks=(gzip.compress(FRAMEWORK), gzip.compress(zeros, 1)))
    size = size_of(path)
    assert size.image_bytes == path.stat().st_size
    assert size.unpacked_bytes == 100 * MIB + 1 + len(b"#!/bin/sh\n")
    assert size.entries == 4
    assert size.unpacked_memory_bytes == 100 * MIB + 2 * 4096 + 4 * 1024
    assert (size.image_mib, size.ratio_mib) == (1, 4)
    assert size.boot_mib == 1 + 101 + KERNEL_MIB
    assert size.needed_mib == size.tmpfs_mib == 202 + KERNEL_MIB
    assert (size.pages(2), size.pages(1024)) == (125, 1)


def test_a_small_image_needs_what_the_driver_asks_for(eif):
    assert size_of(eif()).needed_mib == 64


def test_the_rule_of_four_decides_for_what_does_not_compress(eif):
    size = size_of(eif(kernel=BZIMAGE + bytes(100 * MIB)))
    assert size.needed_mib == size.ratio_mib == 4 * 101


def test_the_size_command(eif, capfdbinary):
    path = str(eif())
    assert main(["size", path, "--page", "1G", "--cpus", "3"]) == 0
    assert b"memory_mib: 1024\ncpu_count: 3" in capfdbinary.readouterr().out
    assert main(["size", path, "--json", "--cpus", "2"]) == 0
    told = json.loads(capfdbinary.readouterr().out)
    assert (told["NeededMiB"], told["HugePages"], told["AllocatedMiB"]) == (64, 32, 64)
    assert told["Allocator"] == {"memory_mib": 64, "cpu_count": 2}
    assert main(["size", path, "--cpus", "0"]) == 2
    assert main(["size", "/nowhere"]) == 2


def test_an_init_that_is_a_link_counts(eif):
    archive = (
        encode_header(b"init", 1, 0o120777, (0, 0), 1, 0, 8)
        + b"sbin/foo"
        + encode_header(b"TRAILER!!!", 0, 0, (0, 0), 1, 0, 0)
    )
    assert names(check_eif(eif(ramdisks=(archive, APP)))) == []
