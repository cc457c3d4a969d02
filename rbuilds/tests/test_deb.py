# SPDX-License-Identifier: Apache-2.0
"""The reader of Debian packages: what dpkg reads, and nothing that is damaged or hostile."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from enclavekit_core.errors import InputError
from enclavekit_rbuilds.framework import deb, runtime_root
from enclavekit_rbuilds.framework.debian import Package
from hypothesis import given
from hypothesis import strategies as st

from .conftest import Member, file, folder, link
from .debs import PACKERS, ar_member, make_deb

MEMBERS = [folder("./usr"), folder("./usr/bin"), file("./usr/bin/busybox", b"program" * 50, mode=0o755)]
PLAIN = make_deb(MEMBERS, suffix="")


def read(path: Path) -> dict[str, bytes]:
    found = {}
    with deb.open_data(str(path)) as archive:
        for member in archive:
            content = archive.extractfile(member) if member.isfile() else None
            found[member.name] = content.read() if content else b""
    return found


@pytest.mark.parametrize("suffix", PACKERS)
def test_reads_every_compression(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / "a.deb"
    path.write_bytes(make_deb(MEMBERS, version="1:2.0~rc1-3+b1", suffix=suffix))
    assert deb.identify(str(path)) == ("demo", "1:2.0~rc1-3+b1", "all")
    assert deb.read_control(str(path))["Description"] == "x\nmore"
    assert read(path)["./usr/bin/busybox"] == b"program" * 50


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="dpkg-deb is not installed")
@pytest.mark.parametrize("suffix", ["xz", "zstd", "gzip", "none"])
def test_reads_what_dpkg_writes_and_the_reverse(tmp_path: Path, suffix: str) -> None:
    tree = tmp_path / "tree"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "usr/share").mkdir(parents=True)
    (tree / "usr/share/file").write_bytes(os.urandom(100_001))
    (tree / "DEBIAN/control").write_text(
        "Package: made\nVersion: 3\nArchitecture: all\nMaintainer: a\nDescription: b\n"
    )
    made = tmp_path / "made.deb"
    done = subprocess.run(["dpkg-deb", "-b", f"-Z{suffix}", tree, made], capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"this dpkg-deb does not write {suffix}")
    assert deb.identify(str(made)) == ("made", "3", "all")
    assert read(made)["./usr/share/file"] == (tree / "usr/share/file").read_bytes()
    ours = tmp_path / "ours.deb"
    ours.write_bytes(make_deb(MEMBERS))
    listed = subprocess.run(["dpkg-deb", "--contents", ours], capture_output=True, text=True, check=True).stdout
    assert "./usr/bin/busybox" in listed


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"!<arch>\n",
        b"not an archive",
        b"!<arch>\n" + ar_member("other", b"2.0\n"),
        b"!<arch>\n" + ar_member("debian-binary", b"3.0\n"),
        b"!<arch>\n" + ar_member("debian-binary", b"2.0\n") + ar_member("control.tar.xz", b"junk"),
        b"!<arch>\n" + ar_member("debian-binary", b"2.0\n") + ar_member("control.tar.lz9", b"junk"),
        b"!<arch>\n" + ar_member("debian-binary", b"2.0\n", size="-1"),
        b"!<arch>\n" + ar_member("debian-binary", b"2.0\n") + ar_member("control.tar", b"x", size="9999999999"),
        make_deb(MEMBERS, version="no version"),
        make_deb(MEMBERS, name="../up"),
    ],
)
def test_refuses_what_is_no_package(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "a.deb"
    path.write_bytes(raw)
    with pytest.raises(InputError):
        deb.identify(str(path))


@pytest.mark.parametrize("suffix", PACKERS)
def test_truncated_anywhere_is_refused(tmp_path: Path, suffix: str) -> None:
    raw = make_deb(MEMBERS, suffix=suffix)
    path = tmp_path / "a.deb"
    for length in range(0, len(raw) - 1, max(7, len(raw) // 200)):
        path.write_bytes(raw[:length])
        with pytest.raises(InputError):
            read(path)


def test_bomb_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deb, "MAX_DATA_BYTES", 1 << 20)
    for suffix in PACKERS:
        path = tmp_path / "a.deb"
        path.write_bytes(make_deb([file("./zeros", bytes(4 << 20))], suffix=suffix))
        with pytest.raises(InputError):
            read(path)


@given(st.integers(0, len(PLAIN) - 1), st.binary(min_size=1, max_size=8))
def test_damage_is_an_error_of_ours_or_nothing(position: int, patch: bytes) -> None:
    with tempfile.NamedTemporaryFile() as target:
        target.write(PLAIN[:position] + patch + PLAIN[position + len(patch) :])
        target.flush()
        try:
            deb.identify(target.name)
            read(Path(target.name))
        except InputError:
            pass


@given(st.binary(max_size=400))
def test_junk_is_refused(raw: bytes) -> None:
    with tempfile.NamedTemporaryFile() as target:
        target.write(b"!<arch>\n" + ar_member("debian-binary", b"2.0\n") + raw)
        target.flush()
        with pytest.raises(InputError):
            deb.identify(target.name)


HOSTILE = {
    "above": [file("./usr/lib/python3.11/../../../../evil", b"x")],
    "behind a link": [
        link("./usr/lib/python3.11/a", "../../../../outside"),
        file("./usr/lib/python3.11/a/evil", b"x"),
    ],
    "twice": [file("./usr/lib/python3.11/a.py", b"x"), file("./usr/lib/python3.11/a.py", b"y")],
    "through a link": [link("./usr/lib/python3.11/a", "../../../../evil"), file("./usr/lib/python3.11/a", b"y")],
}


@pytest.mark.parametrize("members", HOSTILE.values(), ids=HOSTILE)
def test_hostile_package_does_not_leave_the_root(tmp_path: Path, members: list[Member]) -> None:
    (tmp_path / "outside").mkdir()
    path = tmp_path / "a.deb"
    path.write_bytes(make_deb(members, name="libpython3.11-stdlib"))
    root = tmp_path / "root"
    root.mkdir()
    with pytest.raises(InputError):
        runtime_root.write_runtime_root([Package("libpython3.11-stdlib", "1", str(path))], str(root), "x86_64")
    assert not (tmp_path / "evil").exists() and not list((tmp_path / "outside").iterdir())


def test_absolute_link_becomes_relative(tmp_path: Path) -> None:
    lib = "lib/x86_64-linux-gnu"
    members = [file(f"./{lib}/libm.so.6", b"x"), link("./lib64/ld-linux-x86-64.so.2", f"/{lib}/libm.so.6")]
    path = tmp_path / "a.deb"
    path.write_bytes(make_deb(members, name="libc6"))
    root = tmp_path / "root"
    root.mkdir()
    owners = runtime_root.write_runtime_root([Package("libc6", "1", str(path))], str(root), "x86_64")
    assert os.readlink(root / "usr/lib64/ld-linux-x86-64.so.2") == "../lib/x86_64-linux-gnu/libm.so.6"
    assert set(owners.values()) == {"libc6"}
