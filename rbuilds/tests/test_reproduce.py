# SPDX-License-Identifier: Apache-2.0
"""`rbuilds reproduce`: real builds in really changed surroundings, and differences that are there on purpose."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import stat
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from enclavekit_core.errors import InputError
from enclavekit_eif.metadata import make_metadata
from enclavekit_eif.pack import encode_header
from enclavekit_eif.writer import write_eif
from enclavekit_rbuilds.cli import main
from enclavekit_rbuilds.commands import build as build_command
from enclavekit_rbuilds.evidence import probe, surroundings
from enclavekit_rbuilds.evidence.build_words import words_of
from enclavekit_rbuilds.evidence.compare import compare_images, first_difference
from enclavekit_rbuilds.evidence.facts import read_facts
from enclavekit_rbuilds.evidence.reorder import copy_reordered
from enclavekit_rbuilds.evidence.second_build import MADE_KERNELS, SHARED_ENTRIES, share_entries
from enclavekit_rbuilds.evidence.surroundings import Host, Places, plan_surroundings

CONDITIONS = {
    *("hash seed", "clock", "time zone", "locale", "umask", "CPUs", "user", "paths", "home", "directory order"),
}
BUSYBOX = next((path for path in ("/bin/busybox", "/usr/bin/busybox") if os.path.exists(path)), None)


@pytest.fixture
def common(framework: Path, kernel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Words of a build that needs no network: the framework's interpreter is a script that compiles nothing."""
    loader = framework / "usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"
    loader.parent.mkdir(parents=True)
    loader.write_text("#!/bin/sh\nexit 0\n")
    loader.chmod(0o755)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    monkeypatch.setattr("tempfile.tempdir", None)
    return ["--framework-rootfs", str(framework), "--kernel", str(kernel), "--quiet"]


def call(*words: object) -> int:
    return main([str(word) for word in words])


def test_equal_whatever_the_surroundings(common, app: Path, tmp_path: Path, capsys) -> None:
    os.mkfifo(app / "srv/pipe")
    output = tmp_path / "shop.eif"
    words = ["--rootfs", app, "--entrypoint", "serve", *common]
    assert call("reproduce", *words, "--output", output, "--json") == 0
    outcome = json.loads(capsys.readouterr().out)
    assert outcome["equal"] and outcome["framework"] == "given" and not outcome["differences"]
    assert outcome["first"]["sha256"] == outcome["second"]["sha256"]
    assert outcome["evidence"] == {"shop.pcr.json": True, "shop.cdx.json": True, "shop.intoto.json": True}
    changed, left_out = ({item["name"] for item in outcome[key]} for key in ("changed", "left_out"))
    assert changed | left_out == CONDITIONS and not changed & left_out
    assert changed >= {"hash seed", "time zone", "umask", "paths", "home", "directory order"}
    assert all(item["why"] for item in outcome["left_out"])
    assert not os.listdir(tmp_path / "scratch")

    # what it leaves at --output is that image, as a build makes it
    other = tmp_path / "again" / "shop.eif"
    other.parent.mkdir()
    assert call("build", *words, "--output", other) == 0
    assert other.read_bytes() == output.read_bytes()
    assert other.with_name("shop.intoto.json").read_bytes() == output.with_name("shop.intoto.json").read_bytes()


def test_against_an_image_and_against_pcrs(common, app: Path, tmp_path: Path, capsys) -> None:
    image = tmp_path / "shop.eif"
    words = ["--rootfs", app, "--entrypoint", "serve", *common]
    assert call("build", *words, "--output", image) == 0
    pcrs = tmp_path / "expected.json"
    capsys.readouterr()
    pcrs.write_text(json.dumps({"Measurements": read_facts(str(image)).measurements}))
    before = image.read_bytes()
    assert call("reproduce", *words, "--against", image, "--json") == 0
    assert json.loads(capsys.readouterr().out)["equal"]
    assert call("reproduce", *words, "--against-pcrs", pcrs, "--json") == 0
    assert json.loads(capsys.readouterr().out)["equal"]

    (app / "srv/one").write_bytes(b"changed")
    assert call("reproduce", *words, "--against", image, "--json") == 1
    outcome = json.loads(capsys.readouterr().out)
    assert not outcome["equal"]
    assert any("srv/one" in item["member"] for item in outcome["differences"])
    kept = tmp_path / "kept"
    assert call("reproduce", *words, "--against-pcrs", pcrs, "--keep", kept, "--json") == 1
    registers = {item["field"] for item in json.loads(capsys.readouterr().out)["differences"]}
    assert registers == {"PCR0", "PCR2"}, "the framework is the same, the app is not"
    assert "second.eif" in os.listdir(kept)
    assert image.read_bytes() == before and not os.listdir(tmp_path / "scratch")


def test_manifest_in_the_working_directory(common, app: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    folder = tmp_path / "project"
    folder.mkdir()
    shutil.move(app, folder / "app")
    (folder / "enclave.yaml").write_text("name: shop\napp: {rootfs: app}\nentrypoint: [serve]\n")
    monkeypatch.chdir(folder)
    assert call("reproduce", *common, "--json") == 0
    assert json.loads(capsys.readouterr().out)["equal"]
    assert sorted(os.listdir(folder)) == ["app", "enclave.yaml"]


def test_archive_is_reproduced(common, images, capsys) -> None:
    path = images.oci([[images.file("bin/a", b"#!/bin/a\n", mode=0o755, uid=5)]], {"Entrypoint": ["/bin/a"]})
    assert call("reproduce", "--archive", path, *common, "--json") == 0
    outcome = json.loads(capsys.readouterr().out)
    assert outcome["equal"] and "directory order" in {item["name"] for item in outcome["left_out"]}


@pytest.mark.skipif(shutil.which("buildah") is None, reason="buildah is not installed")
@pytest.mark.skipif(os.geteuid() != 0, reason="buildah without root needs user namespaces")
@pytest.mark.skipif(BUSYBOX is None, reason="busybox-static is not installed")
def test_time_in_a_layer_is_located(common, tmp_path: Path, capsys) -> None:
    context = tmp_path / "context"
    context.mkdir()
    shutil.copy(str(BUSYBOX), context / "busybox")
    (context / "Dockerfile").write_text(
        "FROM scratch\nCOPY busybox /bin/busybox\n"
        'RUN ["/bin/busybox", "sh", "-c", "/bin/busybox date > /etc-stamp; '
        '/bin/busybox head -c 16 /dev/urandom >> /etc-stamp"]\n'
        'ENTRYPOINT ["/bin/busybox"]\n'
    )
    words = ["--dockerfile", context / "Dockerfile", "--engine", "buildah", *common]
    assert call("reproduce", *words, "--json") == 1
    outcome = json.loads(capsys.readouterr().out)
    members = {item["member"] for item in outcome["differences"] if item["member"]}
    assert members == {"rootfs/etc-stamp"}
    assert {"user", "home"} <= {item["name"] for item in outcome["left_out"]}


@pytest.mark.parametrize(
    "words, reason",
    [
        (["--rootfs", "nowhere"], "nowhere"),
        (["--rootfs", "app", "--against", "nothing.eif"], "nothing.eif"),
        (["--rootfs", "app", "--against-pcrs", "nothing.json"], "nothing.json"),
        (["--rootfs", "app", "--entrypoint", "not-there"], "not-there"),
        (["--rootfs", "app", "--at", "1"], "--at"),
    ],
)
def test_bad_input_is_one_line(words, reason: str, common, app: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(os.listdir(tmp_path))
    assert call("reproduce", *words, *common, "--output", "x.eif") == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "cannot " in line and "note" not in line]
    assert len(lines) == 1 and reason in lines[0], lines
    assert sorted(name for name in os.listdir(tmp_path) if name != "cache") == before
    assert not os.listdir(tmp_path / "scratch")


def test_words_give_the_same_flags_again(tmp_path: Path) -> None:
    parser = argparse.ArgumentParser()
    build_command.add_arguments(parser)
    words = [
        "--rootfs",
        "a b",
        "-o",
        "x.eif",
        "--entrypoint=-x 'y z'",
        "-e",
        "A=1",
        "-e",
        "B=-2",
        "--authorize",
        "k.crt:all",
    ]
    args = parser.parse_args(words)
    actions = [action for action in parser._actions if action.dest != "help"]
    assert parser.parse_args(words_of(actions, args, "")) == args
    there = parser.parse_args(words_of(actions, args, "/elsewhere"))
    assert there.rootfs == "/elsewhere/a b" and there.authorize == ["/elsewhere/k.crt:all"]
    assert there.entrypoint == args.entrypoint and there.env == args.env


HOST = Host(
    umask=0o022,
    locale="C.UTF-8",
    locales=("C", "C.utf8", "POSIX", "de_DE.utf8"),
    cpus=(0, 3),
    faketime="/lib/faketime.so",
    user="account",
    order="disorderfs",
)
PLACES = Places("/w/work", "/w/home", "/w/cache", "/w/tmp")


def test_everything_changes_where_the_machine_can(tmp_path: Path) -> None:
    before = {"HOME": "/home/me", "LC_TIME": "C", "LD_PRELOAD": "/mine.so", "KEPT": "1"}
    plan = plan_surroundings(HOST, PLACES, before, with_engine=False, uid=0)
    assert {change.name for change in plan.changed} == CONDITIONS and not plan.left_out
    after = plan.environment
    assert after["LC_ALL"] == "de_DE.utf8" and "LC_TIME" not in after
    assert "LD_PRELOAD=/mine.so:/lib/faketime.so" in plan.prefix and after["KEPT"] == "1"
    assert (after["HOME"], after["XDG_CACHE_HOME"], after["TMPDIR"]) == ("/w/home", "/w/cache", "/w/tmp")
    assert list(plan.prefix[plan.prefix.index("--cpu") :][:2]) == ["--cpu", "3"]
    assert "--user" in plan.prefix and "unshare" not in plan.prefix
    assert before == {"HOME": "/home/me", "LC_TIME": "C", "LD_PRELOAD": "/mine.so", "KEPT": "1"}


@pytest.mark.parametrize(
    "host, with_engine, names",
    [
        (replace(HOST, faketime=None), False, {"clock"}),
        (replace(HOST, cpus=(1,)), False, {"CPUs"}),
        (replace(HOST, locales=("C.UTF-8",)), False, {"locale"}),
        (replace(HOST, locales=("POSIX",), locale="C"), False, {"locale"}),
        (replace(HOST, user=None, user_obstacle="no"), False, {"user"}),
        (replace(HOST, order=None, order_obstacle="no"), False, {"directory order"}),
        (HOST, True, {"user", "home"}),
    ],
)
def test_what_cannot_be_changed_is_said(host: Host, with_engine: bool, names: set[str]) -> None:
    plan = plan_surroundings(host, PLACES, {}, with_engine=with_engine, uid=0)
    assert {item.name for item in plan.left_out} == names and all(item.why for item in plan.left_out)
    assert {change.name for change in plan.changed} == CONDITIONS - names


def test_umask_always_differs() -> None:
    for umask in (0o077, 0o022, 0):
        plan = plan_surroundings(replace(HOST, umask=umask), PLACES, {}, with_engine=False, uid=0)
        assert int(plan.prefix[plan.prefix.index("--umask") + 1], 8) != umask


def test_launcher_changes_what_it_is_told(tmp_path: Path) -> None:
    show = "import os; print(open('/proc/self/status').read().split('Umask:')[1].split()[0], os.sched_getaffinity(0))"
    cpu = max(os.sched_getaffinity(0))
    words = [sys.executable, "-P", "-m", "enclavekit_rbuilds.evidence.launch", "--umask", "037", "--cpu", str(cpu)]
    done = subprocess.run([*words, "--", sys.executable, "-c", show], capture_output=True, text=True, check=True)
    assert done.stdout == f"0037 {{{cpu}}}\n"
    assert probe.current_umask() == int(show_umask(), 8)


def show_umask() -> str:
    return subprocess.run(["sh", "-c", "umask"], capture_output=True, text=True, check=True).stdout


def test_python_sleeps_under_the_shifted_clock() -> None:
    library = probe.find_faketime()
    if library is None:
        pytest.skip("libfaketime is not installed")
    plan = plan_surroundings(
        replace(HOST, faketime=library, user=None, cpus=(0,)), PLACES, os.environ, with_engine=True, uid=0
    )
    code = (
        "import runpy, sys, time, datetime; sys.argv = ['x', '--help']\n"
        "try: runpy.run_module('enclavekit_rbuilds.evidence.shifted', run_name='__main__')\n"
        "except SystemExit: pass\n"
        "time.sleep(0.01); print('\\n', time.time())"
    )
    words = [*plan.prefix[: plan.prefix.index("--") + 1], sys.executable, "-P", "-c", code]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    hours = (float(done.stdout.split()[-1]) - time.time()) / 3600
    assert 30 < hours < 32 and surroundings.CLOCK_SHIFT == "+31h"


def test_copy_keeps_what_counts(app: Path, tmp_path: Path) -> None:
    (app / "srv/private").write_bytes(b"secret")
    (app / "srv/private").chmod(0o4600)
    (app / "srv").chmod(0o1775)
    (app / "srv/gone").symlink_to("nowhere")
    os.mkfifo(app / "srv/pipe")
    copy_reordered(str(app), str(tmp_path / "copy"))
    listed = {path.relative_to(app): path.lstat() for path in app.rglob("*")}
    copied = {path.relative_to(tmp_path / "copy"): path.lstat() for path in (tmp_path / "copy").rglob("*")}
    assert listed.keys() == copied.keys()
    for name, info in listed.items():
        assert (copied[name].st_mode, copied[name].st_nlink) == (info.st_mode, info.st_nlink), name
        if stat.S_ISREG(info.st_mode):
            assert (app / name).read_bytes() == (tmp_path / "copy" / name).read_bytes()
        if stat.S_ISLNK(info.st_mode):
            assert (app / name).readlink() == (tmp_path / "copy" / name).readlink()
    with pytest.raises(InputError):
        copy_reordered(str(tmp_path / "nowhere"), str(tmp_path / "other"))


@pytest.mark.parametrize(
    "left, right, offset",
    [(b"", b"", None), (b"abc", b"abc", None), (b"abc", b"abd", 2), (b"abc", b"ab", 2), (b"", b"x", 0)],
)
def test_first_difference(left: bytes, right: bytes, offset: int | None, tmp_path: Path) -> None:
    for padding in (b"", bytes(1 << 20), bytes((1 << 20) - 1)):
        (tmp_path / "left").write_bytes(padding + left)
        (tmp_path / "right").write_bytes(padding + right)
        expected = None if offset is None else len(padding) + offset
        assert first_difference(str(tmp_path / "left"), str(tmp_path / "right")) == expected


def test_only_the_named_entries_are_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "first"))
    for name in ("kernel-made", "kernel", "app", "image"):
        (tmp_path / "first/enclavekit" / f"{name}-{'0' * 24}").mkdir(parents=True)
    (tmp_path / "second").mkdir()
    share_entries(MADE_KERNELS, str(tmp_path / "second"))
    assert os.listdir(tmp_path / "second/enclavekit") == [f"kernel-made-{'0' * 24}"]


@pytest.mark.parametrize("name", ["base", "ramdisk", "kernel", "kernel-made", "framework-base"])
def test_kernel_and_framework_are_shared(name: str) -> None:
    assert SHARED_ENTRIES.fullmatch(name)


@pytest.mark.parametrize("name", ["app", "app-source", "image", "databases"])
def test_nothing_else_is_shared(name: str) -> None:
    assert not SHARED_ENTRIES.fullmatch(name)


def image_of(path: Path, members: list[tuple[bytes, bytes, int]], *, name: str = "x", times: dict[bytes, int]) -> Path:
    """Write an image whose second ramdisk has these members (name, content, mode) in this order, uncompressed."""
    parts = []
    for number, (member, content, mode) in enumerate([*members, (b"TRAILER!!!", b"", 0)]):
        header = encode_header(member, number, mode, (0, 0), 1, times.get(member, 0), len(content))
        parts += [header, content, bytes(-len(content) & 3)]
    empty = encode_header(b"TRAILER!!!", 0, 0, (0, 0), 1, 0, 0)
    for part, content in (("k", b"kernel"), ("r0", empty), ("r1", b"".join(parts))):
        path.with_name(part).write_bytes(content)
    ramdisks = [path.with_name("r0"), path.with_name("r1")]
    write_eif(path, kernel=path.with_name("k"), cmdline=b"", ramdisks=ramdisks, metadata=make_metadata(name, "1"))
    return path


MEMBERS = [(b"a", b"one", 0o100644), (b"b", b"two", 0o100644), (b"c", b"", 0o040755)]


@pytest.mark.parametrize(
    "right, expected",
    [
        ({"times": {b"b": 7}}, {("ramdisk 1", "b", "mtime")}),
        ({"members": [MEMBERS[0], (b"b", b"tvo", 0o100644), MEMBERS[2]]}, {("ramdisk 1", "b", "content at 1")}),
        ({"members": [MEMBERS[0], (b"b", b"two", 0o100600), MEMBERS[2]]}, {("ramdisk 1", "b", "mode")}),
        ({"members": MEMBERS[:2]}, {("ramdisk 1", "c", "member")}),
        ({"members": MEMBERS[1:]}, {("ramdisk 1", "a", "member")}),
        ({"name": "y"}, {("metadata", "ImageName", "value")}),
        (
            {"members": [MEMBERS[1], MEMBERS[0], MEMBERS[2]]},
            {("ramdisk 1", "", "order of members, from no. 1")},
        ),
    ],
    ids=["time", "content", "mode", "last missing", "first missing", "metadata", "shuffled directory"],
)
def test_what_differs_is_located_exactly(right: dict, expected: set, tmp_path: Path) -> None:
    for side in ("left", "right"):
        (tmp_path / side).mkdir()
    first = image_of(tmp_path / "left/x.eif", MEMBERS, times={})
    second = image_of(tmp_path / "right/x.eif", **{"members": MEMBERS, "times": {}, **right})
    found = compare_images(str(first), str(second))
    assert not found.equal
    assert {(item.section, item.member, item.field) for item in found.differences} == expected
    assert compare_images(str(first), str(first)).equal
