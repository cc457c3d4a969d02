# SPDX-License-Identifier: Apache-2.0
"""Whole builds with a framework that is only files: everything but Debian, pip and the kernel is real."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from enclavekit_eif.cpio import iter_cpio
from enclavekit_eif.measure import measure
from enclavekit_eif.reader import read_eif
from enclavekit_rbuilds.cli import main


@pytest.fixture
def build(framework: Path, kernel: Path, tmp_path: Path):
    def run(*words: object, output: str = "app.eif", expect: int = 0) -> Path:
        path = tmp_path / output
        common = ["build", "--quiet", "--framework-rootfs", framework, "--kernel", kernel, "--output", path]
        assert main([str(word) for word in (*common, *words)]) == expect
        return path

    return run


def members(path: Path, ramdisk: int) -> dict[str, tuple[int, int, int, bytes]]:
    """Return name -> (mode, uid, gid, content) of a ramdisk; hard links get the content of their group."""
    found, groups = {}, {}
    eif = read_eif(str(path))
    for entry in iter_cpio(eif.open_section(eif.ramdisks[ramdisk])):
        content = entry.data.read()
        if entry.nlink > 1 and stat.S_ISREG(entry.mode):
            groups[entry.ino] = groups.get(entry.ino) or content
        found[entry.name.decode()] = (entry.mode, entry.uid, entry.gid, content, entry.ino, entry.nlink)
    return {name: (*v[:3], groups.get(v[4], v[3]) if v[5] > 1 else v[3]) for name, v in found.items()}


def test_image_from_a_directory(build, app: Path, certificate, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--entrypoint", "serve --verbose", "--user", "web", "--env", "A=b c", "--authorize", certificate("alice")]
    path = build("--rootfs", app, *words, "--json")
    result = json.loads(capsys.readouterr().out)
    assert result["eif"] == str(path) and result["size"] == path.stat().st_size
    assert measure(read_eif(str(path))).to_json() == result["measurements"]
    assert result["kernel"]["name"] == "bzImage"

    inside = members(path, 1)
    assert inside["rootfs/srv/one"][3] == inside["rootfs/srv/two"][3] == b"content"
    assert inside["rootfs/bin/sh"] == (stat.S_IFLNK | 0o777, 0, 0, b"/bin/serve")
    assert inside["data"][:3] == (stat.S_IFDIR | 0o755, 33, 44)
    assert all(value[1:3] == (0, 0) for name, value in inside.items() if name.startswith("rootfs"))
    assert b'"/bin/serve", "--verbose"' in inside["service/app.service"][3]
    assert b"alice" in inside["etc/enclavekit/clients.yaml"][3]
    names = list(inside)
    for name in names:
        parent = os.path.dirname(name)
        assert not parent or names.index(parent) < names.index(name)

    outside = members(path, 0)
    assert outside["init"][0] == stat.S_IFREG | 0o755
    assert {"service/pipeline.service", "usr/bin/pipeline", "etc/init.toml"} <= set(outside)
    assert "usr/lib/enclavekit/enclavekit_pipeline/__init__.py" in outside
    assert all(value[1:3] == (0, 0) for value in outside.values())


def test_owners_of_an_archive_are_kept(build, images) -> None:
    layer = [
        images.file("bin/a", b"#!/bin/a\n", mode=0o755, uid=5, gid=6),
        images.file("var/x", b"y", mode=0o600, uid=7),
    ]
    path = build("--archive", images.docker([layer], {"Cmd": ["/bin/a"]}))
    inside = members(path, 1)
    assert inside["rootfs/bin/a"][:3] == (stat.S_IFREG | 0o755, 5, 6)
    assert inside["rootfs/var/x"] == (stat.S_IFREG | 0o600, 7, 0, b"y")
    assert "etc/enclavekit/clients.yaml" not in inside
    assert b"ServiceEnable = false" in inside["service/pipeline.service"][3]


def test_app_changes_pcr2_only(build, app: Path) -> None:
    one = measure(read_eif(str(build("--rootfs", app, "--cmd", "serve", output="1.eif"))))
    (app / "srv/one").write_bytes(b"changed")
    two = measure(read_eif(str(build("--rootfs", app, "--cmd", "serve", output="2.eif"))))
    assert one.pcr1 == two.pcr1
    assert one.pcr2 != two.pcr2 and one.pcr0 != two.pcr0


def shuffled_copy(source: Path, target: Path) -> None:
    """Copy a tree, creating entries in reverse order and with other times."""
    target.mkdir()
    links: dict[int, Path] = {}
    for path in sorted(source.rglob("*"), key=lambda path: (len(path.parts), path.name), reverse=True):
        copy = target / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        if path.is_symlink():
            copy.symlink_to(path.readlink())
        elif path.is_dir():
            copy.mkdir(exist_ok=True)
        elif (first := links.setdefault(path.stat().st_ino, copy)) is not copy:
            copy.hardlink_to(first)
        else:
            shutil.copyfile(path, copy)
            os.utime(copy, (1, 1))
    for path in source.rglob("*"):
        if not path.is_symlink():
            (target / path.relative_to(source)).chmod(stat.S_IMODE(path.stat().st_mode))


SCRIPT = """
import sys
from enclavekit_rbuilds import cli
from enclavekit_rbuilds.framework import bytecode
bytecode.compile_modules = lambda *_: None
sys.exit(cli.main(sys.argv[1:]))
"""


def test_same_input_same_bytes(app: Path, framework: Path, kernel: Path, certificate, tmp_path: Path) -> None:
    """Umask, time zone, locale, directory, cache, SOURCE_DATE_EPOCH and the order of directories do not count."""
    shuffled_copy(app, tmp_path / "copy")
    shuffled_copy(framework, tmp_path / "framework-copy")
    certificate("alice")
    machines = [
        (app, framework, {"TZ": "UTC", "LC_ALL": "C", "SOURCE_DATE_EPOCH": "1"}, 0o022),
        (tmp_path / "copy", tmp_path / "framework-copy", {"TZ": "Asia/Tokyo", "LC_ALL": "C.UTF-8"}, 0o077),
    ]
    images = []
    for number, (root, base, changes, umask) in enumerate(machines):
        here = tmp_path / f"machine-{number}"
        here.mkdir()
        env = {name: value for name, value in os.environ.items() if name != "SOURCE_DATE_EPOCH"}
        env |= {"XDG_CACHE_HOME": str(here / "cache"), "PYTHONHASHSEED": str(number), **changes}
        words = ["build", "-q", "--rootfs", root, "--framework-rootfs", base, "--kernel", kernel, "-o", "app.eif"]
        words += ["--cmd", "serve", "--user", "web", "--authorize", tmp_path / "alice.crt"]
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, *map(str, words)], cwd=here, env=env, umask=umask, check=False,
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        images.append((here / "app.eif").read_bytes())
    assert images[0] == images[1]


@pytest.mark.parametrize("compression", ["gzip", "none"])
def test_other_compressions_hold_the_same(build, app: Path, compression: str) -> None:
    zstd = build("--rootfs", app, "--cmd", "serve", output="zstd.eif")
    other = build("--rootfs", app, "--cmd", "serve", "--compression", compression, output="other.eif")
    for ramdisk in (0, 1):
        assert members(zstd, ramdisk) == members(other, ramdisk)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--rootfs", "none", "--cmd", "serve"], "cannot read none: there is none"),
        (["--rootfs", "app"], "no ENTRYPOINT"),
        (["--rootfs", "app", "--cmd", "serve", "--kernel", "no-kernel"], "cannot read kernel no-kernel"),
        (["--rootfs", "app", "--cmd", "serve", "--env", "X"], "NAME=value"),
        (["--rootfs", "app", "--cmd", "[1]"], "not a list of strings"),
        (["--rootfs", "app", "--cmd", "serve", "--authorize", "nobody.crt"], "cannot read certificate nobody.crt"),
        (["--rootfs", "app", "--config", "bad.yaml"], "cannot use bad.yaml"),
        (["--archive", "bad.yaml"], "cannot read bad.yaml: it is not a sound tar archive"),
        (["--dockerfile", "none"], "cannot"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    build, app: Path, tmp_path: Path, words: list[str], reason: str, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bad.yaml").write_text("nmae: x\n")
    Path("app.eif").write_bytes(b"what was there before")
    before = sorted(os.listdir(tmp_path))
    build(*words, expect=2)
    lines = [
        line for line in capsys.readouterr().err.splitlines() if not line.startswith(("rbuilds: note", "rbuilds: f"))
    ]
    assert len(lines) == 1 and lines[0].startswith("rbuilds: cannot ") and reason in lines[0]
    assert Path("app.eif").read_bytes() == b"what was there before"
    assert [name for name in sorted(os.listdir(tmp_path)) if name != "cache"] == before


def test_settings_come_from_the_file_and_flags_win(build, app: Path, tmp_path: Path) -> None:
    config = tmp_path / "enclave.yaml"
    config.write_text("name: shop\nversion: '7'\nentrypoint: [serve]\nenv: {A: '1', B: '2'}\nuser: web\n")
    path = build("--rootfs", app, "--config", config, "--env", "B=3", "--version", "8")
    unit = members(path, 1)["service/app.service"][3]
    assert b'"A=1", "B=3"' in unit and b'User = "33"' in unit
    metadata = read_eif(str(path)).metadata
    assert (metadata["ImageName"], metadata["ImageVersion"]) == ("shop", "8")


@pytest.mark.skipif(shutil.which("buildah") is None, reason="buildah is not installed")
@pytest.mark.skipif(os.geteuid() != 0, reason="buildah without root needs user namespaces")
def test_dockerfile_by_buildah(build, app: Path, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text(
        'FROM scratch\nCOPY app/ /\nUSER web\nWORKDIR /srv\nENV GREETING="hello world"\nENTRYPOINT ["/bin/serve"]\n'
    )
    path = build("--dockerfile", tmp_path / "Dockerfile", "--engine", "buildah")
    inside = members(path, 1)
    unit = inside["service/app.service"][3]
    assert b'"GREETING=hello world"' in unit and b'WorkingDirectory = "/srv"' in unit and b'User = "33"' in unit
    assert inside["rootfs/srv/one"][3] == b"content"


@pytest.mark.skipif(shutil.which("buildah") is None, reason="buildah is not installed")
@pytest.mark.skipif(os.geteuid() != 0, reason="buildah without root needs user namespaces")
def test_failing_dockerfile_shows_its_last_line(build, tmp_path: Path, capsys) -> None:
    (tmp_path / "Dockerfile").write_text("FROM scratch\nCOPY nothing-here /\n")
    path = build("--dockerfile", tmp_path / "Dockerfile", "--engine", "buildah", expect=5)
    assert "nothing-here" in capsys.readouterr().err
    assert not path.exists()
