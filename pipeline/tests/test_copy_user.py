# SPDX-License-Identifier: Apache-2.0
"""Copies of a client whose entry names a user: what that user may, and no more; for others all is as ever."""

import os
import shutil
import subprocess
import threading

import pytest
from enclavekit_pipeline.channel.file_user import file_uid, reaching_files_as, without_capabilities

from .conftest import grant, listening

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root reaches files as somebody else")
USER = 4321
LARGE = 9 << 20  # of which a partial file is kept


@pytest.fixture(scope="module")
def enclave(inside):
    clients = [
        grant(inside, "alice"),
        grant(inside, "bob", user=str(USER)),
        grant(inside, "mallory", user="nobody-here"),
    ]
    with listening(inside, clients, cid=29):
        yield inside


@pytest.fixture
def data(enclave):
    """A directory of root's with one of the user's in it."""
    data = enclave.app / "data"
    shutil.rmtree(data)
    (data / "his").mkdir(parents=True)
    os.chown(data / "his", USER, USER)
    return data


def owner(path):
    info = os.lstat(path)
    return info.st_uid, info.st_gid


def test_files_and_trees_are_the_users(enclave, data, tmp_path):
    (tmp_path / "tree/sub").mkdir(parents=True)
    (tmp_path / "tree/sub/file").write_text("content")
    os.symlink("sub", tmp_path / "tree/link")
    (tmp_path / "large").write_bytes(os.urandom(LARGE))
    for source in ("tree", "large"):
        done = enclave.run("cp", tmp_path / source, f"29:/data/his/{source}", identity="bob")
        assert (done.returncode, done.stderr[-300:]) == (0, done.stderr[-300:])
    made = [data / "his/large", *(data / "his/tree").rglob("*"), data / "his/tree"]
    assert len(made) == 5
    assert {owner(path) for path in made} == {(USER, USER)}
    assert sorted(os.listdir(data / "his")) == ["large", "tree"]


def test_nothing_is_written_where_the_user_may_not(enclave, data, tmp_path):
    (tmp_path / "file").write_text("new")
    (data / "his/roots").write_text("old")
    os.chmod(data / "his", 0o555)
    for target in ("/data/file", "/data/his/file", "/data/his/roots"):
        done = enclave.run("cp", tmp_path / "file", f"29:{target}", identity="bob")
        assert done.returncode == 2
        assert b"permission denied" in done.stderr
    assert (data / "his/roots").read_text() == "old"
    assert sorted(os.listdir(data)) == ["his"]
    assert os.listdir(data / "his") == ["roots"]


def test_nothing_is_read_that_the_user_may_not(enclave, data, tmp_path):
    (data / "his/secret").write_text("secret")
    (data / "his/public").write_text("public")
    os.chmod(data / "his/secret", 0o600)
    done = enclave.run("cp", "29:/data/his/secret", "-", identity="bob")
    assert (done.returncode, done.stdout) == (2, b"")
    assert enclave.run("cp", "29:/data/his/public", "-", identity="bob").stdout == b"public"
    done = enclave.run("cp", "29:/data/his", tmp_path / "back", identity="bob")
    assert done.returncode == 1  # what cannot be read is named
    assert os.listdir(tmp_path / "back") == ["public"]
    assert enclave.run("cp", "29:/data/his/secret", "-").stdout == b"secret"


def test_others_are_not_affected(enclave, data, tmp_path):
    """The same threads serve both, in turns."""
    (tmp_path / "file").write_text("new")
    for number in range(4):
        assert enclave.run("cp", tmp_path / "file", f"29:/data/his/{number}", identity="bob").returncode == 0
        assert enclave.run("cp", tmp_path / "file", f"29:/data/{number}").returncode == 0
    assert [owner(data / f"his/{number}") for number in range(4)] == [(USER, USER)] * 4
    assert [owner(data / str(number)) for number in range(4)] == [(0, 0)] * 4


def test_owners_are_not_for_him(enclave, data, tmp_path):
    (tmp_path / "file").write_text("new")
    done = enclave.run("cp", "-a", tmp_path / "file", "29:/data/his/file", identity="bob")
    assert done.returncode == 3
    assert b"archive" in done.stderr
    assert os.listdir(data / "his") == []


def test_user_that_is_none_copies_nothing(enclave, data, tmp_path):
    (tmp_path / "file").write_text("new")
    assert enclave.run("cp", tmp_path / "file", "29:/data/file", identity="mallory").returncode == 2
    assert os.listdir(data) == ["his"]


def test_what_processes_outside_have_is_not_read(enclave):
    """A copy is made by the listener, which may trace everybody; the client may not, even where it copies as root."""
    (enclave.app / "proc").mkdir(exist_ok=True)
    subprocess.run(["mount", "--bind", "/proc", enclave.app / "proc"], check=True)
    try:
        done = enclave.run("cp", f"29:/proc/{os.getpid()}/environ", "-")
        other = enclave.run("cp", "29:/proc/version", "-")
    finally:
        subprocess.run(["umount", enclave.app / "proc"], check=True)
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"permission denied" in done.stderr
    assert other.stdout.startswith(b"Linux")


def test_capabilities_are_put_down_and_taken_up_again():
    def effective():
        with open("/proc/thread-self/status") as status:
            return next(line for line in status if line.startswith("CapEff"))

    before = effective()
    with without_capabilities([0, 19, 33]):
        assert not int(effective().split()[1], 16) & (1 << 0 | 1 << 19 | 1 << 33)
    assert effective() == before


def test_only_this_thread_and_only_meanwhile():
    look, seen = threading.Event(), []

    def other():
        look.wait()
        seen.append(file_uid())

    thread = threading.Thread(target=other)
    thread.start()
    with reaching_files_as(USER, USER):
        look.set()
        thread.join()
        assert file_uid() == USER
    assert (file_uid(), seen) == (0, [0])


def test_who_may_not_become_somebody_is_told(tmp_path):
    with pytest.raises(PermissionError), reaching_files_as(-1 & 0xFFFFFFFF, 0):
        pass
    assert file_uid() == 0
