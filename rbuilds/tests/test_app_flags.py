# SPDX-License-Identifier: Apache-2.0
"""`rbuilds build` with every kind of app source, as a user calls it; only the framework is a few files."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

import pytest
from enclavekit_eif.cpio import iter_cpio
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


def app_members(path: Path) -> dict[str, tuple[int, int, bytes]]:
    eif = read_eif(str(path))
    return {
        os.fsdecode(entry.name): (entry.uid, entry.gid, entry.data.read())
        for entry in iter_cpio(eif.open_section(eif.ramdisks[1]))
    }


def test_a_layout_as_directory_tar_and_link_gives_the_same_image(build, images, tmp_path: Path) -> None:
    packed = images.oci([[images.file("bin/a", b"#!\n", mode=0o755)]], {"Cmd": ["/bin/a"]})
    with tarfile.open(packed) as archive:
        archive.extractall(tmp_path / "layout", filter="data")
    (tmp_path / "link.tar").symlink_to(packed)
    built = [
        app_members(build("--archive", source, output=f"{number}.eif"))
        for number, source in enumerate((packed, tmp_path / "layout", tmp_path / "link.tar"))
    ]
    assert built[0] == built[1] == built[2]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to others")
def test_keep_owners(build, app: Path) -> None:
    os.chown(app / "srv/one", 33, 44)
    words = ["--rootfs", app, "--cmd", "serve"]
    assert app_members(build(*words, output="1.eif"))["rootfs/srv/one"][:2] == (0, 0)
    assert app_members(build(*words, "--keep-owners", output="2.eif"))["rootfs/srv/one"][:2] == (33, 44)


def test_supplementary_groups_and_volumes_reach_the_unit(build, images) -> None:
    layer = [
        images.file("bin/a", b"#!\n", mode=0o755),
        images.file("etc/passwd", b"web:x:33:44::/:/bin/a\n"),
        images.file("etc/group", b"web:x:44:web\nmail:x:8:other,web\ntty:x:5:web\nroot:x:0:root\n"),
    ]
    run = {"Cmd": ["/bin/a"], "User": "web", "Volumes": {"/var/lib/state": {}}}
    inside = app_members(build("--archive", images.docker([layer], run)))
    assert b'SupplementaryGroups = ["5", "8"]' in inside["service/app.service"][2]
    assert "rootfs/var/lib/state" in inside
    named = app_members(build("--archive", images.docker([layer], run), "--user", "web:web", output="2.eif"))
    assert b"SupplementaryGroups" not in named["service/app.service"][2]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--archive", "ARCHIVE", "--keep-owners"], "--keep-owners"),
        (["--archive", "ARCHIVE", "--build-arg", "A=1"], "--build-arg"),
        (["--rootfs", "APP", "--cmd", "serve", "--target", "x"], "--target"),
    ],
)
def test_flags_of_another_source_are_refused(build, app: Path, images, words, reason: str, capsys) -> None:
    archive = images.docker([[images.file("bin/a", mode=0o755)]], {"Cmd": ["/bin/a"]})
    path = build(*[{"ARCHIVE": archive, "APP": app}.get(word, word) for word in words], expect=2)
    assert reason in capsys.readouterr().err
    assert not path.exists()


@pytest.mark.parametrize("form", ["docker", "oci"])
def test_a_damaged_archive_is_one_line_and_leaves_nothing(build, images, tmp_path: Path, form: str, capsys) -> None:
    archive = getattr(images, form)([[images.file("bin/a", os.urandom(9000), mode=0o755)]], {"Cmd": ["/bin/a"]})
    raw = archive.read_bytes()
    before = set(os.listdir(tmp_path))
    content = len(raw.rstrip(b"\0"))  # what follows is padding
    for part in (0.01, 0.2, 0.5, 0.8, 0.98):
        archive.write_bytes(raw[: int(content * part)])
        path = build("--archive", archive, expect=2)
        errors = [line for line in capsys.readouterr().err.splitlines() if "cannot " in line]
        assert len(errors) == 1, errors
        assert not path.exists()
    assert set(os.listdir(tmp_path)) - before <= {"cache"}
    kept = [path.name for path in (tmp_path / "cache/enclavekit").iterdir() if path.is_dir()]
    assert not [name for name in kept if name.startswith((".tmp", "app-"))]
