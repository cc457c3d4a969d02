# SPDX-License-Identifier: Apache-2.0
"""A base in one file: the same bytes each time, and nothing written that the named hash does not cover."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
import tempfile
from pathlib import Path

import msgspec
import pytest
import zstandard
from enclavekit_core.errors import InputError
from enclavekit_rbuilds.base.inputs import Input
from enclavekit_rbuilds.cli import main
from enclavekit_rbuilds.framework import archive, base_stage
from enclavekit_rbuilds.framework.archive import BaseRecord, Entry, Manifest
from enclavekit_rbuilds.framework.closure import ALL_SERVICES
from enclavekit_rbuilds.framework.origin import Origin
from hypothesis import given
from hypothesis import strategies as st

WISH = base_stage.wish_for("x86_64", ["pipeline"])


def record_for(wish: base_stage.BaseWish, version: str = "1.0") -> BaseRecord:
    inputs = [
        Input("debian", name, version, hashlib.sha256(name.encode()).hexdigest(), 7, "bookworm") for name in wish.debian
    ]
    inputs += [Input("wheel", wheel.name, wheel.version, wheel.sha256s[0]) for wheel in wish.wheels]
    return BaseRecord(base_stage.RECIPE, "bookworm", wish.arch, "apt", tuple(inputs), {"debian/libc6": 7})


@pytest.fixture
def root(tmp_path: Path) -> Path:
    top = tmp_path / "root"
    (top / "usr/bin").mkdir(parents=True)
    (top / "tmp").mkdir()
    (top / "tmp").chmod(0o1777)
    (top / "usr/bin/python3.11").write_bytes(b"program")
    (top / "usr/bin/python3.11").chmod(0o750)
    (top / "usr/bin/python3").symlink_to("python3.11")
    (top / "bin").symlink_to("usr/bin")
    (top / "usr/notes").write_bytes(b"n" * 5000)
    return top


def pack(root: Path, version: str = "1.0") -> tuple[bytes, str]:
    out = io.BytesIO()
    digest = archive.write_archive(str(root), record_for(WISH, version), out)
    assert digest == hashlib.sha256(out.getvalue()).hexdigest()
    return out.getvalue(), digest


def test_same_root_gives_the_same_bytes_and_comes_back(root: Path, tmp_path: Path) -> None:
    raw, digest = pack(root)
    os.utime(root / "usr/notes", (1, 1))
    assert pack(root)[0] == raw
    path, again = tmp_path / "a.tar.zst", tmp_path / "again"
    path.write_bytes(raw)
    record = archive.unpack_archive(str(path), digest, str(again))
    assert record.inputs == record_for(WISH).inputs and record.origin == "archive"
    assert archive.scan_root(str(again)) == archive.scan_root(str(root))
    assert (again / "tmp").stat().st_mode & 0o7777 == 0o1777


def test_other_bytes_are_refused_before_anything_is_written(root: Path, tmp_path: Path) -> None:
    raw, digest = pack(root)
    path = tmp_path / "a.tar.zst"
    path.write_bytes(raw[:-1])
    with pytest.raises(InputError):
        archive.unpack_archive(str(path), digest, str(tmp_path / "again"))
    assert not (tmp_path / "again").exists()


ENTRIES = {
    "above": [Entry("../evil", "f", 0o644, 1, "00")],
    "absolute": [Entry("/evil", "f", 0o644, 1, "00")],
    "no parent": [Entry("a/b", "f", 0o644, 1, "00")],
    "in a link": [Entry("a", "l", 0o777, 0, "b"), Entry("a/b", "f", 0o644, 1, "00")],
    "in a file": [Entry("a", "f", 0o644, 0, "00"), Entry("a/b", "f", 0o644, 1, "00")],
    "twice": [Entry("a", "f", 0o644, 0, "00"), Entry("a", "f", 0o644, 0, "00")],
    "setuid": [Entry("a", "f", 0o4755, 0, "00")],
    "absolute link": [Entry("a", "l", 0o777, 0, "/etc/passwd")],
    "escaping link": [Entry("d", "d", 0o755, 0, ""), Entry("d/a", "l", 0o777, 0, "../../x")],
    "empty link": [Entry("a", "l", 0o777, 0, "")],
    "negative": [Entry("a", "f", 0o644, -1, "00")],
    "huge": [Entry("a", "f", 0o644, archive.MAX_ROOT_BYTES + 1, "00")],
    "dot": [Entry(".", "d", 0o755, 0, "")],
}


@pytest.mark.parametrize("entries", ENTRIES.values(), ids=ENTRIES)
def test_hostile_manifest_is_refused(entries: list[Entry]) -> None:
    with pytest.raises(ValueError):
        archive.check_entries(entries)


@given(
    st.lists(st.tuples(st.text("ab./", max_size=6), st.sampled_from("dfl"), st.text("ab./", max_size=8)), max_size=6)
)
def test_what_is_accepted_stays_below_the_root(words: list[tuple[str, str, str]]) -> None:
    modes = {"d": 0o755, "f": 0o644, "l": 0o777}
    entries = [Entry(path, kind, modes[kind], 0, target) for path, kind, target in words]  # type: ignore[arg-type]
    try:
        archive.check_entries(entries)
    except ValueError:
        return
    with tempfile.TemporaryDirectory() as top:
        inside = os.path.join(top, "root")
        os.mkdir(inside)
        for entry in entries:
            path = os.path.join(inside, entry.path)
            assert os.path.realpath(os.path.dirname(path)).startswith(inside)
            if entry.kind == "d":
                os.mkdir(path)
            elif entry.kind == "l":
                os.symlink(entry.content, path)
            else:
                open(path, "xb").close()
        assert os.listdir(top) == ["root"]


def crafted(entries: list[Entry], members: list[tuple[tarfile.TarInfo, bytes]], number: int = 1) -> bytes:
    manifest = msgspec.json.encode(Manifest(number, record_for(WISH), tuple(entries)))
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        head = tarfile.TarInfo("manifest.json")
        head.size = len(manifest)
        tar.addfile(head, io.BytesIO(manifest))
        for header, content in members:
            header.size = len(content)
            tar.addfile(header, io.BytesIO(content))
    return zstandard.ZstdCompressor().compress(out.getvalue())


def header(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


A = Entry("a", "f", 0o644, 1, hashlib.sha256(b"x").hexdigest())
LINK = Entry("a", "l", 0o777, 0, "b")
LIES = {
    "other name": ([A], [(header("root/b"), b"x")]),
    "other content": ([A], [(header("root/a"), b"y")]),
    "other size": ([A], [(header("root/a"), b"xx")]),
    "device": ([A], [(header("root/a", tarfile.CHRTYPE), b"")]),
    "hard link": ([A], [(header("root/a", tarfile.LNKTYPE, "/etc/passwd"), b"")]),
    "link instead": ([A], [(header("root/a", tarfile.SYMTYPE, "/etc/passwd"), b"")]),
    "other target": ([LINK], [(header("root/a", tarfile.SYMTYPE, "/etc"), b"")]),
    "missing": ([A], []),
    "spare": ([A], [(header("root/a"), b"x"), (header("root/b"), b"x")]),
    "traversal": ([A], [(header("root/../../a"), b"x")]),
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
def test_archive_must_be_what_its_manifest_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lie: tuple) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "a.tar.zst"
    path.write_bytes(crafted(*lie))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert main(["framework", "import", str(path), "--sha256", digest, "--quiet"]) == 2
    left = os.listdir(tmp_path / "cache/enclavekit") if (tmp_path / "cache").exists() else []
    assert [name for name in left if not name.endswith(".lock")] == []


def test_format_of_another_version_is_said(tmp_path: Path) -> None:
    path = tmp_path / "a.tar.zst"
    path.write_bytes(crafted([], [], 2))
    with pytest.raises(InputError, match="another version"):
        archive.read_manifest(str(path))


@given(st.data())
def test_damaged_archive_is_an_error_of_ours(data: st.DataObject) -> None:
    raw = bytearray(crafted([A], [(header("root/a"), b"x")]))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    with tempfile.TemporaryDirectory() as top:
        path = os.path.join(top, "a")
        Path(path).write_bytes(raw)
        try:
            archive.unpack_archive(path, hashlib.sha256(raw).hexdigest(), os.path.join(top, "root"))
        except InputError:
            pass


def test_import_serves_builds_and_replaces_what_was_there(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """After an import a build finds its base, and asks neither apt nor a container engine."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    for text in (b"first", b"second"):
        (root / "usr/notes").write_bytes(text)
        raw, digest = pack(root, text.decode())
        path = tmp_path / "a.tar.zst"
        path.write_bytes(raw)
        assert main(["framework", "import", str(path), "--sha256", digest, "--quiet"]) == 0
        capsys.readouterr()
        assert main(["framework", "build", "--services", "pipeline", "--json", "--quiet"]) == 0
        answer = msgspec.json.decode(capsys.readouterr().out)
        assert answer["origin"] == "archive"
        assert (Path(answer["root"]) / "usr/notes").read_bytes() == text
    assert main(["framework", "build", "--services", "attestation", "--quiet"]) == 2  # no such base, and no way to it


def test_base_for_other_services_is_refused(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    raw, digest = pack(root)
    path = tmp_path / "a.tar.zst"
    path.write_bytes(raw)
    argv = ["framework", "build", "--framework-from", f"archive:{path}@{digest}", "--quiet", "--services"]
    assert main([*argv, "pipeline"]) == 0
    assert main([*argv, "attestation"]) == 2
    assert main([*argv, "none"]) == 2


def test_base_with_other_wheels_is_refused() -> None:
    record = record_for(WISH)
    for change in (
        {"recipe": "0"},
        {"arch": "aarch64"},
        {"suite": "sid"},
        {"inputs": record.inputs[1:]},
        {"inputs": (*record.inputs, Input("debian", "spare", "1", "00"))},
        {"inputs": (*record.inputs[:-1], msgspec.structs.replace(record.inputs[-1], sha256="00" * 32))},
    ):
        with pytest.raises(InputError):
            base_stage.check_base(msgspec.structs.replace(record, **change), WISH, "a")
    base_stage.check_base(record, WISH, "a")


def test_pins_hold_an_archive() -> None:
    record = record_for(WISH)
    pins = base_stage.by_name(record.inputs)
    base_stage.check_pins(record, pins)
    base_stage.check_pins(record, None)
    other = {**pins, "libc6": msgspec.structs.replace(pins["libc6"], version="2.0")}
    with pytest.raises(InputError, match=r"libc6 is 2\.0 .* in rbuilds\.lock, 1\.0"):
        base_stage.check_pins(record, other)


def test_key_depends_on_what_is_wanted() -> None:
    full = base_stage.wish_for("x86_64", ALL_SERVICES)
    pins = base_stage.by_name(record_for(WISH).inputs)
    keys = {full.key(), WISH.key(), WISH.key(pins), base_stage.wish_for("aarch64", ["pipeline"]).key()}
    assert len(keys) == 4
    assert Origin("archive", path="a", sha256="b") != Origin("apt")
