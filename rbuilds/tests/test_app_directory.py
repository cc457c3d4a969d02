# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import io
import os
import shutil
import socket
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from enclavekit_core.errors import InputError
from enclavekit_rbuilds.app.archive import read_archive
from enclavekit_rbuilds.app.directory import read_directory
from enclavekit_rbuilds.app.tree import AppTree
from enclavekit_rbuilds.base.progress import Progress
from enclavekit_rbuilds.image.ramdisk import pack_app

NOBODY = 65534


def owners(tree: AppTree) -> set[tuple[int, int]]:
    return {(node.inode.uid, node.inode.gid) for node in tree.walk()}


def test_hard_links_stay_one_file(app: Path) -> None:
    tree = read_directory(str(app))
    one, two = tree.find((b"srv", b"one")), tree.find((b"srv", b"two"))
    assert one is not None and two is not None
    assert one.number == two.number and tree.link_counts() == {one.number: 2}
    assert one.content is not None and two.content is not None
    assert Path(os.fsdecode(one.content.path)).read_bytes() == Path(os.fsdecode(two.content.path)).read_bytes()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to others")
def test_owners_are_roots_unless_asked_for(app: Path) -> None:
    for path in app.rglob("*"):
        os.chown(path, 33, 44, follow_symlinks=False)
    os.chown(app, 33, 44)
    assert owners(read_directory(str(app))) == {(0, 0)}
    kept = read_directory(str(app), keep_owners=True)
    assert owners(kept) == {(33, 44)}
    assert (kept.root.inode.uid, kept.root.inode.gid) == (33, 44)


def test_owners_of_an_ordinary_user_are_kept_too(app: Path) -> None:
    assert owners(read_directory(str(app), keep_owners=True)) == {(os.geteuid(), (app / "bin").stat().st_gid)}


def test_fifos_are_kept_and_sockets_are_left_out_with_a_note(app: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(app / "srv/fifo", 0o620)
    os.chmod(app / "srv/fifo", 0o620)
    monkeypatch.chdir(app)  # a socket's path is short
    notes = io.StringIO()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind("srv/sock")
        tree = read_directory(".", progress=Progress(notes))
    node = tree.find((b"srv", b"fifo"))
    assert node is not None and node.mode == stat.S_IFIFO | 0o620
    assert tree.find((b"srv", b"sock")) is None
    assert "/srv/sock" in notes.getvalue()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes device nodes")
def test_device_nodes_are_kept(app: Path) -> None:
    try:
        os.mknod(app / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("device nodes cannot be made here")
    node = read_directory(str(app)).find((b"null",))
    assert node is not None and node.inode.rdev == (1, 3)


def test_file_capabilities_are_read(app: Path) -> None:
    value = b"\1\0\0\2\0\4\0\0" + b"\0" * 12
    try:
        os.setxattr(app / "bin/serve", "security.capability", value)
    except OSError:
        pytest.skip("file capabilities cannot be set here")
    [(node, found)] = read_directory(str(app)).capabilities()
    assert (node.path, found) == (b"bin/serve", value)


def test_names_that_are_not_utf8_are_kept(app: Path) -> None:
    (Path(os.fsdecode(os.fsencode(app) + b"/srv/\xff\xfe"))).write_bytes(b"x")
    node = read_directory(str(app)).find((b"srv", b"\xff\xfe"))
    assert node is not None and node.content is not None and node.content.path == os.fsencode(app) + b"/srv/\xff\xfe"


def as_ordinary_user(action: Callable[[], str]) -> str:
    """Return what `action` returns, or its error, when somebody who is not root does it, whoever runs the tests.

    By fork: the interpreter may lie where only root can start it.
    """
    out, into = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            if os.geteuid() == 0:
                os.setgroups([])
                os.setresgid(NOBODY, NOBODY, NOBODY)
                os.setresuid(NOBODY, NOBODY, NOBODY)
            try:
                answer = action()
            except BaseException as exc:
                answer = f"{type(exc).__name__}: {exc}"
            os.write(into, answer.encode())
        finally:
            os._exit(0)
    os.close(into)
    with open(out, "rb") as source:
        answer = source.read().decode()
    os.waitpid(child, 0)
    return answer


@pytest.fixture
def open_app(app: Path):
    """The app where anybody can get at it; where pytest keeps its directories, only who runs it can."""
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)
        target = Path(directory) / "app"
        shutil.copytree(app, target, symlinks=True)
        yield target


def test_an_ordinary_user_reads_a_directory(open_app: Path) -> None:
    answer = as_ordinary_user(lambda: str(sum(1 for _ in read_directory(str(open_app)).walk())))
    assert answer == str(len(list(open_app.rglob("*"))))


def test_an_ordinary_user_reads_an_archive(images, open_app: Path) -> None:
    layer = [images.folder("dev"), images.file("bin/a", b"1" * 5000, mode=0o4755, uid=5), images.link("b", "/bin/a")]
    shutil.move(images.oci([layer]), open_app / "image.tar")
    scratch = open_app / "scratch"
    scratch.mkdir()
    scratch.chmod(0o777)

    def action() -> str:
        tree, _ = read_archive(str(open_app / "image.tar"), str(scratch), "x86_64", Progress(io.StringIO()))
        pack_app(tree, [], str(scratch / "ramdisk"), "zstd")
        return " ".join(node.path.decode() for node in tree.walk())

    assert as_ordinary_user(action) == "b bin bin/a dev"


@pytest.mark.parametrize("name", ["srv/one", "srv"])
def test_what_cannot_be_read_is_one_clear_line(open_app: Path, name: str) -> None:
    (open_app / name).chmod(0)
    answer = as_ordinary_user(lambda: str(read_directory(str(open_app))))
    assert answer.startswith("InputError: cannot read ") and name in answer and "permission denied" in answer
    assert "\n" not in answer


def test_a_path_that_is_no_directory_is_refused(app: Path) -> None:
    for path in (app / "none", app / "bin/serve"):
        with pytest.raises(InputError, match="cannot read"):
            read_directory(str(path))
