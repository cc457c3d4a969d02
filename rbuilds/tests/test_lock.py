# SPDX-License-Identifier: Apache-2.0
"""The lock: what it pins, that a build is held to it, and that a difference is named."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from enclavekit_core.errors import ConfigError, InputError
from enclavekit_rbuilds.base.inputs import Input
from enclavekit_rbuilds.cli import main
from enclavekit_rbuilds.framework import debian
from enclavekit_rbuilds.lock.dockerfile import base_images, context_digest, is_ignored
from enclavekit_rbuilds.lock.model import Lock, compare_inputs, load_lock, lock_of, render_lock
from hypothesis import given, settings
from hypothesis import strategies as st

from .conftest import file
from .debs import make_deb

SHA = "ab" * 32
INPUTS = [
    Input("wheel", "aiohttp", "3.14.5", SHA),
    Input("kernel", "Debian", "6.1", SHA),
    Input("debian", "libc6", "2.36-9", SHA, 1234, "bookworm"),
    Input("app", "app.tar", "", SHA, 0, "archive"),
]


def test_lock_comes_back_and_does_not_depend_on_order(tmp_path: Path) -> None:
    text = render_lock(lock_of("x86_64", {"pipeline", "files"}, INPUTS))
    assert text == render_lock(lock_of("x86_64", ["files", "pipeline"], INPUTS[::-1]))
    path = tmp_path / "rbuilds.lock"
    path.write_text(text)
    lock = load_lock(str(path))
    assert render_lock(lock) == text
    assert sorted(lock.by_key().values(), key=repr) == sorted(INPUTS, key=repr)
    assert lock.debian() == {"libc6": INPUTS[2]}
    assert len([line for line in text.splitlines() if line.startswith("- ")]) == len(INPUTS)


@pytest.mark.parametrize(
    "change",
    [
        ("version: 1", "version: 2"),
        ("arch: x86_64", "arch: m68k"),
        ("[pipeline]", "[ssh]"),
        (SHA, SHA[:-1]),
        (SHA, "A" * 64),
        ("size: 1234", "size: -1"),
        ("size: 1234", "sise: 1234"),
        ('kind: "wheel"', 'kind: "snake"'),
        ('name: "libc6", ', ""),
        ("inputs:", "inputs: 3\nmore:"),
        ("- {", "- ["),
        (
            '- {kind: "debian"',
            '- {"kind": "debian", name: "libc6", "version": "1", "sha256": "' + SHA + '"}\n- {kind: "debian"',
        ),
    ],
)
def test_malformed_lock_is_refused(tmp_path: Path, change: tuple[str, str]) -> None:
    text = render_lock(lock_of("x86_64", ["pipeline"], INPUTS))
    assert change[0] in text
    path = tmp_path / "rbuilds.lock"
    path.write_text(text.replace(*change))
    with pytest.raises(ConfigError):
        load_lock(str(path))


TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1, max_size=12)


@settings(max_examples=40)  # PyYAML is slow
@given(st.lists(st.builds(Input, st.just("file"), TEXTS, TEXTS, st.just(SHA), st.integers(0, 9), TEXTS), max_size=4))
def test_any_text_comes_back(inputs: list[Input]) -> None:
    unique = list({(one.name, one.source): one for one in inputs}.values())
    import yaml

    document = yaml.safe_load(render_lock(lock_of("x86_64", [], unique)))
    again = msgspec.convert(document, Lock)
    assert {(one.name, one.source): one for one in again.by_key().values()} == {
        (one.name, one.source): one for one in unique
    }


def test_two_inputs_of_one_name_are_a_bug() -> None:
    with pytest.raises(ValueError):
        lock_of("x86_64", [], [INPUTS[0], INPUTS[0]])


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (INPUTS, []),
        (
            [*INPUTS[:2], msgspec.structs.replace(INPUTS[2], version="2.36-10"), INPUTS[3]],
            ["libc6", "2.36-9", "2.36-10"],
        ),
        ([*INPUTS[:3], msgspec.structs.replace(INPUTS[3], sha256="cd" * 32)], ["app.tar", SHA, "cd" * 32]),
        (INPUTS[1:], ["aiohttp", "does not have it"]),
        ([*INPUTS, Input("wheel", "spare", "1", SHA)], ["spare", "not in rbuilds.lock"]),
        ([INPUTS[0], Input("kernel", "made", "7.0", SHA), *INPUTS[2:]], ["kernel", "Debian 6.1", "made 7.0"]),
    ],
)
def test_difference_names_the_input_and_both_values(found: list[Input], words: list[str]) -> None:
    differences = compare_inputs(INPUTS, found)
    assert len(differences) == bool(words)
    assert all(word in differences[0] for word in words)


@pytest.fixture
def build(framework: Path, kernel: Path, app: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    common = ["--framework-rootfs", str(framework), "--kernel", str(kernel), "--rootfs", str(app), "--quiet"]

    def run(command: str, *words: str, expect: int = 0) -> None:
        assert main([command, *common, *words]) == expect

    return run


def test_locked_build_is_the_build(build, tmp_path: Path) -> None:
    build("lock", "--cmd", "serve")
    lock = load_lock(str(tmp_path / "rbuilds.lock"))
    assert {"app", "kernel", "own"} == {one.kind for one in lock.inputs}
    build("build", "--cmd", "serve", "--output", "a.eif")
    build("build", "--cmd", "serve", "--output", "b.eif", "--locked")
    assert (tmp_path / "a.eif").read_bytes()[:4] == b".eif" == (tmp_path / "b.eif").read_bytes()[:4]
    first = (tmp_path / "rbuilds.lock").read_bytes()
    build("lock", "--cmd", "serve")
    assert (tmp_path / "rbuilds.lock").read_bytes() == first


@pytest.mark.parametrize("what", ["app", "kernel", "services", "own"])
def test_locked_build_refuses_what_differs(build, app: Path, kernel: Path, tmp_path: Path, what: str, capsys) -> None:
    build("lock", "--cmd", "serve", "--output", "my.lock")
    more: list[str] = []
    if what == "app":
        (app / "srv/one").write_bytes(b"other")
    elif what == "kernel":
        kernel.write_bytes(b"OTHER" * 100)
    elif what == "services":
        more = ["--services", "pipeline"]
    else:
        text = (tmp_path / "my.lock").read_text()
        own = next(one for one in load_lock(str(tmp_path / "my.lock")).inputs if one.name == "enclavekit-core")
        (tmp_path / "my.lock").write_text(text.replace(own.sha256, SHA))
        what = "enclavekit-core"
    capsys.readouterr()
    build("build", "--cmd", "serve", "--output", "a.eif", "--lock", "my.lock", *more, expect=2)
    complaint = capsys.readouterr().err.splitlines()[-1]
    assert "a.eif" in complaint and what in complaint and "rbuilds.lock" in complaint
    assert not (tmp_path / "a.eif").exists()


def test_missing_lock_is_said(build, tmp_path: Path) -> None:
    build("build", "--cmd", "serve", "--output", "a.eif", "--locked", expect=2)
    assert not (tmp_path / "a.eif").exists()


def test_failed_lock_leaves_the_old_one(build, tmp_path: Path, kernel: Path) -> None:
    (tmp_path / "rbuilds.lock").write_text("old")
    kernel.unlink()
    build("lock", "--cmd", "serve", expect=2)
    assert (tmp_path / "rbuilds.lock").read_text() == "old"
    assert not [name for name in os.listdir(tmp_path) if name.startswith((".rbuilds", "tmp"))]


@pytest.mark.parametrize(
    ("text", "images"),
    [
        ("FROM debian:12\n", ["debian:12"]),
        ("FROM --platform=linux/amd64 a AS build\nFROM build\nCOPY --from=build /x /\n", ["a"]),
        ("from A as B\nFROM scratch\nCOPY --from=b / /\nCOPY --from=0 / /\n", ["A"]),
        ("FROM a\nCOPY --from=tools:1 /x /\nRUN --mount=type=bind,from=t2,target=/t true\n", ["a", "t2", "tools:1"]),
        ("# FROM x\nFROM \\\n  a\nRUN <<EOF\nFROM no\nEOF\n", ["a"]),
    ],
)
def test_base_images_of_a_dockerfile(text: str, images: list[str]) -> None:
    assert base_images(text) == images


def test_image_named_by_a_variable_cannot_be_pinned() -> None:
    with pytest.raises(ValueError, match=r"\$BASE"):
        base_images("ARG BASE=debian\nFROM $BASE\n")


def test_context_without_what_dockerignore_names(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src/a.c").write_text("a")
    (tmp_path / ".dockerignore").write_text("# c\n*.log\nsrc/**/*.o\n!keep.log\n")
    first = context_digest(str(tmp_path))
    for name in ("x.log", "src/a.o", "out.eif", "rbuilds.lock"):
        (tmp_path / name).write_text("noise")
    assert context_digest(str(tmp_path)) == first
    (tmp_path / "keep.log").write_text("x")
    second = context_digest(str(tmp_path))
    (tmp_path / "src/a.c").chmod(0o755)
    assert len({first, second, context_digest(str(tmp_path))}) == 3
    assert is_ignored("a/b/c", ["a"]) and not is_ignored("ab", ["a"]) and is_ignored("x/y.o", ["**/*.o"])


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A Debian archive on disk, signed by a key of its own, that the real apt reads."""
    for program in ("apt-get", "gpg", "gpgv"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    home = tmp_path / "gpg"
    home.mkdir(mode=0o700)
    gpg = ["gpg", "--homedir", str(home), "--batch", "--quiet", "--pinentry-mode", "loopback", "--passphrase", ""]
    made = subprocess.run([*gpg, "--quick-gen-key", "test@test", "ed25519"], capture_output=True, check=False)
    if made.returncode:
        pytest.skip(f"gpg makes no key here: {made.stderr.decode()[-200:]}")
    with open(tmp_path / "key.gpg", "wb") as out:
        subprocess.run([*gpg, "--export"], stdout=out, check=True)
    monkeypatch.setattr(debian, "KEYRING", str(tmp_path / "key.gpg"))
    top = tmp_path / "mirror"
    monkeypatch.setenv(debian.MIRROR_VARIABLE, f"file://{top}")
    yield top
    subprocess.run(["gpgconf", "--homedir", str(home), "--kill", "all"], capture_output=True, check=False)


def publish(
    top: Path,
    versions: dict[str, list[str]],
    name: str = "debian",
    *,
    depends: dict[str, str] | None = None,
    files: tuple[str, ...] = ("./usr/share/x",),
) -> None:
    """Write an archive with these versions of each package.

    Args:
        depends: package -> what it depends on.
        files: of every package; each holds the version, as a kernel's configuration would.
    """
    for archive, suites in ((name, ("bookworm", "bookworm-updates")), (f"{name}-security", ("bookworm-security",))):
        pool = top / archive / "pool"
        shutil.rmtree(top / archive, ignore_errors=True)
        pool.mkdir(parents=True)
        index = ""
        for package, numbers in versions.items():
            for number in numbers:
                members = [file(path, f"CONFIG_X={number}\n".encode()) for path in files]
                raw = make_deb(members, name=package, version=number, arch="amd64")
                path = pool / f"{package}_{number}_amd64.deb"
                path.write_bytes(raw)
                needs = f"Depends: {depends[package]}\n" if depends and package in depends else ""
                index += (
                    f"Package: {package}\nVersion: {number}\nArchitecture: amd64\n"
                    f"{needs}Maintainer: a\nDescription: b\n"
                    f"Filename: pool/{path.name}\nSize: {len(raw)}\nSHA256: {hashlib.sha256(raw).hexdigest()}\n\n"
                )
        for suite in suites:
            where = top / archive / "dists" / suite
            (where / "main/binary-amd64").mkdir(parents=True)
            text = index if suite == "bookworm" else ""
            (where / "main/binary-amd64/Packages").write_text(text)
            digest = hashlib.sha256(text.encode()).hexdigest()
            release = (
                f"Origin: Debian\nSuite: {suite}\nCodename: {suite}\nArchitectures: amd64\nComponents: main\n"
                f"Date: Sat, 01 Jan 2022 00:00:00 UTC\nSHA256:\n {digest} {len(text)} main/binary-amd64/Packages\n"
            )
            (where / "Release").write_text(release)
            home = top.parent / "gpg"
            sign = ["gpg", "--homedir", str(home), "--batch", "--quiet", "--pinentry-mode", "loopback"]
            sign += ["--passphrase", "", "--clearsign", "-o", str(where / "InRelease"), str(where / "Release")]
            subprocess.run(sign, check=True, capture_output=True)


def source(tmp_path: Path, name: str) -> debian.PackageSource:
    directory = tmp_path / name
    directory.mkdir()
    return debian.PackageSource(str(directory), "x86_64")


def test_pinned_versions_are_fetched_as_long_as_the_mirror_has_them(mirror: Path, tmp_path: Path, monkeypatch) -> None:
    publish(mirror, {"one": ["1.0"], "two": ["1:2.0"]})
    pins = source(tmp_path, "a").candidates(["one", "two"])
    assert pins["two"].version == "1:2.0" and len(pins["one"].sha256) == 64 and pins["one"].size > 0
    fetched = source(tmp_path, "b").fetch(["one", "two"], pins)
    assert [package.as_input() for package in fetched] == [pins["one"], pins["two"]]

    publish(mirror, {"one": ["1.0", "1.1"], "two": ["1:2.0"]})  # newer, the old one still there
    assert [package.version for package in source(tmp_path, "c").fetch(["one", "two"])] == ["1.1", "1:2.0"]
    assert [package.version for package in source(tmp_path, "d").fetch(["one", "two"], pins)] == ["1.0", "1:2.0"]

    publish(mirror, {"one": ["1.1"], "two": ["1:2.0"]})  # the old one gone
    with pytest.raises(InputError, match=r"one is 1\.0 in rbuilds\.lock, 1\.1 at the mirror.*SNAPSHOT"):
        source(tmp_path, "e").fetch(["one", "two"], pins)
    snapshot = tmp_path / "snapshot"
    publish(snapshot, {"one": ["1.0"], "two": ["1:2.0"]})
    monkeypatch.setenv(debian.SNAPSHOT_VARIABLE, f"file://{snapshot}/debian")
    with pytest.raises(InputError, match="SNAPSHOT"):
        source(tmp_path, "f").fetch(["one"], pins)  # no date in it
    for name in ("debian", "debian-security"):
        (snapshot / name).rename(snapshot / "undated")
        (snapshot / name).mkdir()
        (snapshot / "undated").rename(snapshot / name / "20220101T000000Z")
    monkeypatch.setenv(debian.SNAPSHOT_VARIABLE, f"file://{snapshot}/debian/20220101T000000Z")
    assert [package.version for package in source(tmp_path, "g").fetch(["one", "two"], pins)] == ["1.0", "1:2.0"]


def test_same_version_with_other_bytes_is_refused(mirror: Path, tmp_path: Path) -> None:
    publish(mirror, {"one": ["1.0"]})
    pins = source(tmp_path, "a").candidates(["one"])
    other = {"one": msgspec.structs.replace(pins["one"], sha256=SHA)}
    with pytest.raises(InputError, match="SHA-256"):
        source(tmp_path, "b").fetch(["one"], other)
    with pytest.raises(InputError, match=r"not in rbuilds\.lock"):
        source(tmp_path, "c").fetch(["one"], {"else": pins["one"]})
    path = next(mirror.glob("debian/pool/one_*"))
    path.write_bytes(path.read_bytes()[:-1] + b"x")  # somebody at the mirror
    from enclavekit_core.errors import EnclavekitError

    with pytest.raises(EnclavekitError):
        source(tmp_path, "d").fetch(["one"], pins)
