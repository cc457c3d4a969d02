# SPDX-License-Identifier: Apache-2.0
import gzip
import io
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from enclavekit_eif.cli import main
from enclavekit_eif.cpio import CpioWriter
from enclavekit_eif.reader import read_eif


@pytest.fixture
def ramdisks(tmp_path, archive):
    out = io.BytesIO()
    with CpioWriter(out) as writer:
        writer.add_file(b"init", b"#!/bin/sh\n", mode=0o755)
        writer.add_directory(b"closed", mode=0o500)
        writer.add_node(b"null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    (tmp_path / "r0").write_bytes(out.getvalue())
    (tmp_path / "r1").write_bytes(gzip.compress(archive({b"rootfs/app": b"app", b"closed/x": b"x"})))
    (tmp_path / "k").write_bytes(b"kernel")
    return [str(tmp_path / "r0"), str(tmp_path / "r1")]


@pytest.fixture
def build(tmp_path, ramdisks):
    """`build(*flags)` runs `eif build` to x.eif and returns its exit code."""
    inputs = ["--kernel", str(tmp_path / "k"), "--cmdline", "console=ttyS0"]
    inputs += [word for path in ramdisks for word in ("--ramdisk", path)]
    return lambda *flags: main(["build", *inputs, "--output", str(tmp_path / "x.eif"), *map(str, flags)])


def test_build_then_describe(tmp_path, build, capfdbinary, key_files, monkeypatch):
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    certificate, key = key_files()
    (tmp_path / "custom.json").write_text('{"team": "\u00e5"}')
    flags = ["--name", "app", "--version", "2", "--metadata", tmp_path / "custom.json", "--build-time", "T"]
    assert build(*flags, "--signing-certificate", certificate, "--private-key", key) == 0
    built = json.loads(capfdbinary.readouterr().out)
    assert main(["describe", str(tmp_path / "x.eif")]) == 0
    described = json.loads(capfdbinary.readouterr().out)
    assert described["Measurements"] == built["Measurements"]
    assert (described["ImageName"], described["ImageVersion"]) == ("app", "2")
    assert (described["CheckCRC"], described["SignatureCheck"]) == (True, True)
    assert described["Metadata"]["team"] == "\u00e5"
    assert described["Metadata"]["BuildTime"] == "T"


@pytest.mark.parametrize(
    "epoch, time", [(None, "1970-01-01T00:00:00+00:00"), ("1700000000", "2023-11-14T22:13:20+00:00")]
)
def test_build_time_comes_from_the_environment_or_is_fixed(tmp_path, build, monkeypatch, epoch, time):
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    if epoch:
        monkeypatch.setenv("SOURCE_DATE_EPOCH", epoch)
    assert build() == 0
    assert read_eif(tmp_path / "x.eif").metadata["BuildMetadata"]["BuildTime"] == time


@pytest.mark.parametrize(
    "flags, cause",
    [
        (["--private-key", "k"], "need each other"),
        (["--kernel", "missing"], "cannot read kernel missing: no such file or directory"),
        (["--metadata", "missing"], "cannot read metadata missing"),
        (["--metadata", "/dev/zero"], "not a regular file"),
        (["--signing-certificate", "missing", "--private-key", "missing"], "cannot read missing"),
    ],
)
def test_bad_build_is_one_line_and_leaves_nothing(tmp_path, build, capfd, flags, cause):
    assert build(*flags) == 2
    captured = capfd.readouterr()
    assert cause in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["k", "r0", "r1"]


def test_bad_epoch_is_refused(build, monkeypatch, capfd):
    for text in ("tomorrow", "99999999999999999999"):
        monkeypatch.setenv("SOURCE_DATE_EPOCH", text)
        assert build() == 2
        assert "SOURCE_DATE_EPOCH" in capfd.readouterr().err


def test_wrong_crc_is_described_but_not_extracted(tmp_path, build, capfdbinary):
    build()
    path = tmp_path / "x.eif"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    capfdbinary.readouterr()
    assert main(["describe", str(path)]) == 0
    assert json.loads(capfdbinary.readouterr().out)["CheckCRC"] is False
    assert main(["extract", str(path), "-o", str(tmp_path / "out")]) == 2
    assert not (tmp_path / "out").exists()


def test_extract_gives_the_sections_and_the_tree(tmp_path, build, ramdisks, capfd):
    build()
    assert main(["extract", str(tmp_path / "x.eif"), "-o", str(tmp_path / "out"), "--tree"]) == 0
    assert "left out null: a device node" in capfd.readouterr().err
    out = tmp_path / "out"
    assert sorted(path.name for path in out.iterdir()) == [
        "cmdline",
        "kernel",
        "metadata.json",
        "ramdisk-0",
        "ramdisk-1",
        "root",
    ]
    assert (out / "cmdline").read_bytes() == b"console=ttyS0"
    assert [(out / f"ramdisk-{i}").read_bytes() for i in (0, 1)] == [Path(path).read_bytes() for path in ramdisks]
    assert (out / "root/rootfs/app").read_bytes() == b"app"
    assert (out / "root/closed/x").read_bytes() == b"x"
    assert os.access(out / "root/init", os.X_OK)


def test_extract_refuses_to_mix_and_leaves_nothing(tmp_path, build, image, capfd):
    build()
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").write_text("mine")
    before = sorted(tmp_path.iterdir())
    assert main(["extract", str(tmp_path / "x.eif"), "-o", str(tmp_path / "full")]) == 2
    # the ramdisks of this one are no archives
    assert main(["extract", str(image), "--tree", "-o", str(tmp_path / "new")]) == 2
    assert "cannot read ramdisk: not a newc cpio archive" in capfd.readouterr().err
    assert sorted(tmp_path.iterdir()) == before


def test_command_runs_and_starts_light(image, tmp_path):
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "enclavekit_eif.cli"], capture_output=True, text=True
    )
    assert done.returncode == 0
    for heavy in ("cryptography", "cbor2", "zstandard", "enclavekit_eif.reader"):
        assert heavy not in done.stderr
    missing = subprocess.run(
        [Path(sys.executable).with_name("eif"), "describe", tmp_path / "missing"], capture_output=True, text=True
    )
    assert missing.returncode == 2
    assert missing.stderr == f"eif: cannot read EIF {tmp_path / 'missing'}: no such file or directory\n"
