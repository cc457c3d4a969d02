# SPDX-License-Identifier: Apache-2.0
"""cp of trees against a real listener: what is kept, what is refused, and that differences travel alone."""

import dataclasses
import json
import os
import secrets
import shutil
import signal
import stat
import subprocess

import pytest

from .conftest import BIN, CID, grant, listening

ODD_NAMES = (b"with space", b"new\nline", b"\xff\xfe not UTF-8", b"-rf", "ümläut".encode(), b"x" * 255, b"\x1b[2J")


@pytest.fixture(autouse=True)
def clean(enclave, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.rmtree(enclave.app / "data")
    (enclave.app / "data/in").mkdir(parents=True)


def make_tree(root):
    """A tree with one of everything that is kept."""
    (root / "empty").mkdir(parents=True)
    (root / "deep/er/est").mkdir(parents=True)
    (root / "a").write_bytes(b"first")
    (root / "deep/er/b").write_bytes(secrets.token_bytes(300_000))
    (root / "deep/nothing").write_bytes(b"")
    os.link(root / "a", root / "deep/same-as-a")
    os.symlink("../a", root / "deep/link")
    os.symlink("nowhere", root / "dangling")
    for name in ODD_NAMES:
        with open(os.fsencode(root) + b"/deep/" + name, "wb") as file:
            file.write(name)
    with open(root / "sparse", "wb") as file:
        file.truncate(50_000_000)
        file.seek(20_000_000)
        file.write(b"island")
    (root / "a").chmod(0o640)
    (root / "deep/er").chmod(0o500)
    stamp = 1_600_000_000_000_000_000
    for above, directories, files in os.walk(root, topdown=False):
        for name in [*files, *directories]:
            stamp += 1_000_000_007
            os.utime(os.path.join(above, name), ns=(stamp, stamp), follow_symlinks=False)
    os.utime(root, ns=(stamp, stamp))


def picture(root, owners=False):
    """Everything about a tree that a copy promises to keep."""
    root = os.fsencode(root)
    seen, inodes = {}, {}
    for above, directories, files in os.walk(root):
        for name in [b".", *files, *directories]:
            path = os.path.join(above, name)
            info = os.lstat(path)
            what = None
            if stat.S_ISLNK(info.st_mode):
                what = os.readlink(path)
            elif stat.S_ISREG(info.st_mode):
                with open(path, "rb") as file:
                    what = file.read()
                if info.st_nlink > 1:
                    inodes.setdefault(info.st_ino, set()).add(os.path.relpath(path, root))
            ids = (info.st_uid, info.st_gid) if owners else None
            seen[os.path.relpath(path, root)] = (info.st_mode, info.st_mtime_ns, ids, what)
    return seen, sorted(sorted(names) for names in inodes.values())


def ok(done, code=0):
    assert done.returncode == code, done.stderr
    return done


def leftovers(root):
    return [name for _, _, names in os.walk(root) for name in names if "partial" in name]


def test_both_ways_keep_everything(enclave, tmp_path):
    make_tree(tmp_path / "tree")
    ok(enclave.run("cp", "tree", f"{CID}:/data"))
    ok(enclave.run("cp", f"{CID}:/data/tree", "back"))
    expected = picture(tmp_path / "tree")
    assert len(expected[0]) > 18
    assert picture(enclave.app / "data/tree") == expected
    assert picture(tmp_path / "back") == expected
    for copy in (enclave.app / "data/tree", tmp_path / "back"):
        assert (copy / "sparse").stat().st_blocks * 512 < 1_000_000
        assert not leftovers(copy)


@pytest.mark.parametrize(
    ("source", "target", "made"),
    [
        ("tree", "/data", "data/tree/x"),
        ("tree", "/data/new", "data/new/x"),
        ("tree/.", "/data", "data/x"),
        ("tree/.", "/data/new", "data/new/x"),
        ("tree/", "/data/", "data/tree/x"),
        ("tree", "/data/new/", "data/new/x"),
        ("tree/x", "/data/in", "data/in/x"),
        ("tree/x", "/data/in/y", "data/in/y"),
    ],
)
def test_where_it_goes(enclave, tmp_path, source, target, made):
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/x").write_bytes(b"x")
    ok(enclave.run("cp", source, f"{CID}:{target}"))
    assert (enclave.app / made).read_bytes() == b"x"
    # and the same the other way around
    (tmp_path / "data/in").mkdir(parents=True)
    shutil.copytree(tmp_path / "tree", enclave.app / "data/from/tree")
    ok(enclave.run("cp", f"{CID}:/data/from/{source}", f"{tmp_path}{target}"))
    assert (tmp_path / made).read_bytes() == b"x"


def test_existing_directories_keep_what_they_are_unless_archive_says_so(enclave, tmp_path):
    (tmp_path / "tree").mkdir(mode=0o700)
    (tmp_path / "tree/x").write_bytes(b"x")
    (enclave.app / "data/in").chmod(0o1777)
    ok(enclave.run("cp", "tree/.", f"{CID}:/data/in"))
    assert stat.S_IMODE((enclave.app / "data/in").stat().st_mode) == 0o1777
    ok(enclave.run("cp", "-a", "tree/.", f"{CID}:/data/in"))
    assert stat.S_IMODE((enclave.app / "data/in").stat().st_mode) == 0o700


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_archive_keeps_owners(enclave, tmp_path):
    make_tree(tmp_path / "tree")
    os.chown(tmp_path / "tree/a", 1234, 55)
    os.chown(tmp_path / "tree/empty", 77, 78)
    os.lchown(tmp_path / "tree/dangling", 79, 80)
    os.utime(tmp_path / "tree", ns=(0, 0))
    ok(enclave.run("cp", "-a", "tree", f"{CID}:/data/kept"))
    ok(enclave.run("cp", "-a", f"{CID}:/data/kept", "back"))
    assert picture(tmp_path / "back", owners=True) == picture(tmp_path / "tree", owners=True)
    ok(enclave.run("cp", "tree", f"{CID}:/data/ours"))
    assert (enclave.app / "data/ours/a").stat().st_uid == 0


def test_names_that_are_no_text_can_be_asked_for(enclave, tmp_path):
    odd = b"\xff\xfe"
    with open(os.fsencode(tmp_path) + b"/" + odd, "wb") as file:
        file.write(b"odd")
    ok(enclave.run("cp", os.fsdecode(odd), f"{CID}:/data/in"))
    assert os.listdir(os.fsencode(enclave.app / "data/in")) == [odd]
    ok(enclave.run("cp", f"{CID}:/data/in/{os.fsdecode(odd)}", "got"))
    assert (tmp_path / "got").read_bytes() == b"odd"


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        (["--exclude", "*.log"], {"a.py", "sub", "sub/b.py", "cache", "cache/c.py"}),
        (["--exclude", "cache"], {"a.py", "a.log", "sub", "sub/b.py"}),
        (["--exclude", "sub/*"], {"a.py", "a.log", "sub", "cache", "cache/c.py"}),
        (["--include", "*.py"], {"a.py", "sub", "sub/b.py", "cache", "cache/c.py"}),
        (["--include", "b.*"], {"sub", "sub/b.py"}),
        (["--include", "sub"], {"sub", "sub/b.py"}),
        (["--include", "cache/", "--exclude", "c.*"], {"cache"}),
        (["--include", "*.py", "--exclude", "cache/"], {"a.py", "sub", "sub/b.py"}),
    ],
)
def test_selection(enclave, tmp_path, flags, names):
    for name in ("a.py", "a.log", "sub/b.py", "cache/c.py"):
        (tmp_path / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tree" / name).write_bytes(b"x")
    ok(enclave.run("cp", *flags, "tree", f"{CID}:/data"))
    shutil.copytree(tmp_path / "tree", enclave.app / "data/from")
    ok(enclave.run("cp", *flags, f"{CID}:/data/from", "back"))
    for root in (enclave.app / "data/tree", tmp_path / "back"):
        assert {str(path.relative_to(root)) for path in root.rglob("*")} == names


def test_what_is_left_out_is_named(enclave, tmp_path):
    for root in (tmp_path / "tree", enclave.app / "data/tree"):
        root.mkdir()
        os.mkfifo(root / "pipe")
        os.symlink("/etc/passwd", root / "out\x1b")
        os.symlink("../..", root / "up")
        (root / "x").write_bytes(b"x")
    for source, target, made in (
        ("tree", f"{CID}:/data/new", enclave.app / "data/new"),
        (f"{CID}:/data/tree", "new", tmp_path / "new"),
    ):
        told = ok(enclave.run("cp", source, target), code=1).stderr.decode()
        assert [path.name for path in made.iterdir()] == ["x"]
        assert all(name in told for name in ("left out pipe", "left out out?:", "left out up"))
        shutil.rmtree(made)
        ok(enclave.run("cp", "--unsafe-links", source, target), code=1)
        assert sorted(path.name for path in made.iterdir()) == ["out\x1b", "up", "x"]


def test_nothing_is_written_through_a_link_in_the_way(enclave, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / "tree/sub").mkdir(parents=True)
    (tmp_path / "tree/sub/x").write_bytes(b"new")
    (enclave.app / "data/tree").mkdir()
    os.symlink("/etc", enclave.app / "data/tree/sub")
    (tmp_path / "host").mkdir()
    os.symlink(outside, tmp_path / "host/sub")
    shutil.copytree(tmp_path / "tree", enclave.app / "data/from")
    ok(enclave.run("cp", "tree/.", f"{CID}:/data/tree"), code=2)
    ok(enclave.run("cp", f"{CID}:/data/from/.", "host"), code=2)
    assert list(outside.iterdir()) == []
    assert not (enclave.app / "etc/x").exists()
    # a link where a file goes is replaced
    os.symlink(outside / "f", tmp_path / "host/f")
    (enclave.app / "data/f").write_bytes(b"f")
    ok(enclave.run("cp", f"{CID}:/data/f", "host"))
    assert not (tmp_path / "host/f").is_symlink()
    assert list(outside.iterdir()) == []


def test_kinds_that_do_not_fit_are_errors(enclave, tmp_path):
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/x").mkdir()
    (enclave.app / "data/in/x").write_bytes(b"a file")
    ok(enclave.run("cp", "tree/.", f"{CID}:/data/in"), code=2)
    (tmp_path / "file").write_bytes(b"")
    (enclave.app / "data/in/dir/file").mkdir(parents=True)
    ok(enclave.run("cp", "file", f"{CID}:/data/in/dir"), code=2)
    ok(enclave.run("cp", f"{CID}:/data", "-"), code=2)
    ok(enclave.run("cp", f"{CID}:/data", "file"), code=2)
    ok(enclave.run("cp", "--json", f"{CID}:/data/in/x", "-"), code=2)


def test_grants_hold_for_trees(enclave, tmp_path):
    make_tree(tmp_path / "tree")
    ok(enclave.run("cp", "tree", f"{CID}:/data", identity="bob"), code=3)
    ok(enclave.run("cp", "--unsafe-links", "tree", f"{CID}:/data/in", identity="bob"), code=3)
    assert sorted(os.listdir(enclave.app / "data")) == ["in"]
    assert os.listdir(enclave.app / "data/in") == []
    ok(enclave.run("cp", "tree", f"{CID}:/data/in", identity="bob"))
    ok(enclave.run("cp", f"{CID}:/data/in", "back", identity="bob"))
    ok(enclave.run("cp", f"{CID}:/", "other", identity="bob"), code=3)


def events(done):
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_delta_leaves_what_is_equal_alone(enclave, tmp_path):
    make_tree(tmp_path / "tree")
    for number in range(700):  # more than are announced ahead
        (tmp_path / f"tree/empty/{number}").write_bytes(b"%d" % number)
    there = enclave.app / "data/tree"
    ok(enclave.run("cp", "tree", f"{CID}:/data"))
    inodes = {path: path.lstat().st_ino for path in there.rglob("*") if stat.S_ISREG(path.lstat().st_mode)}
    (tmp_path / "tree/empty/5").write_bytes(b"other")
    (tmp_path / "tree/a").chmod(0o600)
    (there / "empty/6").unlink()
    done = ok(enclave.run("cp", "-a", "--delta", "--json", "tree", f"{CID}:/data"))
    assert picture(there) == picture(tmp_path / "tree")
    changed = {path.name for path, inode in inodes.items() if not path.exists() or path.lstat().st_ino != inode}
    assert "5" in changed
    assert changed <= {"5", "6"}
    assert [event["event"] for event in (events(done)[0], events(done)[-1])] == ["start", "done"]
    for _ in range(2):
        (tmp_path / "back").mkdir(exist_ok=True)
        ok(enclave.run("cp", "-a", "--delta", f"{CID}:/data/tree/.", "back"))
    assert picture(tmp_path / "back") == picture(tmp_path / "tree")


def test_upstream_names_copy(enclave, tmp_path):
    """send-file, recv-file, send-dir and recv-dir make the directories that lead to the target."""
    (tmp_path / "tree/sub").mkdir(parents=True)
    (tmp_path / "tree/sub/x").write_bytes(b"x")
    where = ("--cid", CID)
    ok(enclave.run("send-dir", *where, "--localdir", "tree", "--remotedir", "/data/in/a/b"))
    assert (enclave.app / "data/in/a/b/sub/x").read_bytes() == b"x"
    ok(enclave.run("recv-dir", *where, "--localdir", "got/it", "--remotedir", "/data/in/a"))
    assert (tmp_path / "got/it/b/sub/x").read_bytes() == b"x"
    ok(enclave.run("send-file", *where, "--localpath", "tree/sub/x", "--remotepath", "/data/in/c/d/y"))
    assert (enclave.app / "data/in/c/d/y").read_bytes() == b"x"
    ok(enclave.run("recv-file", *where, "--localpath", "p/q/z", "--remotepath", "/data/in/c/d/y"))
    assert (tmp_path / "p/q/z").read_bytes() == b"x"
    ok(enclave.run("recv-dir", *where, "--localdir", "none", "--remotedir", "/data/none"), code=2)
    assert not (tmp_path / "none").exists()
    ok(enclave.run("send-dir", *where, "--localdir", "tree", "--remotedir", "/etc/new/x", identity="bob"), code=3)
    assert not (enclave.app / "etc/new").exists()


BIG = bytes(range(256)) * (96 * 4096)  # 96 MiB


def begun(state, process):
    """Wait until a copy has written a part of a file that is worth resuming."""
    while process.poll() is None:
        try:
            if state.stat().st_size > 10_000_000:
                return
        except FileNotFoundError:
            continue
    raise AssertionError("the copy was over before it could be cut")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("into", [True, False], ids=["in", "out"])
def test_cut_copy_of_a_large_file_is_found_again_and_cleaned(enclave, tmp_path, into, number):
    source, target = (tmp_path, enclave.app / "data") if into else (enclave.app / "data", tmp_path)
    (source / "big").write_bytes(BIG)
    where = f"{CID}:/data/big"
    words = ("big", where) if into else (where, "big")
    state = target / ".big.enclavekit-partial"
    argv = [BIN / "pipeline", "cp", *enclave.flags(), *words]
    with subprocess.Popen(argv, env=enclave.environment, stderr=subprocess.DEVNULL) as copying:
        begun(state, copying)
        copying.send_signal(number)
    assert not (target / "big").exists()
    ok(enclave.run("cp", "--json", *words))
    assert (target / "big").read_bytes() == BIG
    assert not leftovers(target)


def test_listener_that_dies_in_a_copy(inside, tmp_path):
    """The caller is told, nothing half-made has a name, and the next copy goes on."""
    (inside.app / "data/in").mkdir(parents=True, exist_ok=True)
    (tmp_path / "big").write_bytes(BIG)
    state = inside.app / "data/.big.enclavekit-partial"
    own = dataclasses.replace(inside, directory=tmp_path)
    for name in ("alice.crt", "alice.key"):
        shutil.copy(inside.directory / name, tmp_path)
    argv = [BIN / "pipeline", "cp", *inside.flags(), "big", "23:/data/big"]
    with (
        listening(own, [grant(own, "alice")], cid=23) as listener,
        subprocess.Popen(argv, env=inside.environment, stderr=subprocess.PIPE) as copying,
    ):
        begun(state, copying)
        listener.kill()
        told = copying.stderr.read().decode()
    assert copying.returncode == 3
    assert "cannot keep the connection" in told
    assert not (inside.app / "data/big").exists()
    with listening(own, [grant(own, "alice")], cid=23):
        assert subprocess.run(argv, env=inside.environment).returncode == 0
    assert (inside.app / "data/big").read_bytes() == BIG
    assert not leftovers(inside.app)
