# SPDX-License-Identifier: Apache-2.0
import hashlib
import os

import pytest
from enclavekit_core import file_hash
from enclavekit_core.file_hash import FileHash, Unstable, hash_open_file, open_beneath, open_regular


@pytest.fixture
def root(tmp_path):
    handle = os.open(tmp_path, os.O_PATH | os.O_DIRECTORY)
    yield handle
    os.close(handle)


@pytest.mark.parametrize("size", [0, 1, file_hash.CHUNK_BYTES, file_hash.CHUNK_BYTES + 1])
def test_hash_is_sha3_512_of_the_content(tmp_path, root, size):
    data = os.urandom(size)
    (tmp_path / "file").write_bytes(data)
    handle = open_regular(root, [b"file"])
    found = hash_open_file(handle, await_tick=True)
    os.close(handle)
    assert isinstance(found, FileHash)
    assert (found.digest, found.size_bytes) == (hashlib.sha3_512(data).digest(), size)


@pytest.mark.parametrize(
    "change", [lambda f: f.write_bytes(b"B" * 10), lambda f: f.write_bytes(b"A" * 11), lambda f: os.truncate(f, 3)]
)
def test_hash_of_a_file_that_changes_while_it_is_read(tmp_path, root, change, monkeypatch):
    file = tmp_path / "file"
    file.write_bytes(b"A" * 10)
    real = os.preadv
    todo = [change]

    def preadv(handle, buffers, offset):
        if todo:
            todo.pop()(file)
        return real(handle, buffers, offset)

    handle = open_regular(root, [b"file"])
    monkeypatch.setattr(file_hash.os, "preadv", preadv)
    assert hash_open_file(handle, await_tick=True) is Unstable.CHANGED
    os.close(handle)


def test_hash_waits_for_writers_where_asked(tmp_path, root):
    file = tmp_path / "file"
    file.write_bytes(b"A")
    handle = open_regular(root, [b"file"])
    if not can_lease(handle):
        pytest.skip("this file system grants no leases")
    with open(file, "ab"):
        assert hash_open_file(handle, await_tick=False, refuse_writers=True) is Unstable.BUSY
        assert isinstance(hash_open_file(handle, await_tick=False), FileHash)
    assert isinstance(hash_open_file(handle, await_tick=False, refuse_writers=True), FileHash)
    os.close(handle)


def can_lease(handle):
    import fcntl

    try:
        fcntl.fcntl(handle, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError:
        return False
    fcntl.fcntl(handle, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return True


def test_links_are_never_followed(tmp_path, root):
    (tmp_path / "dir").mkdir()
    (tmp_path / "dir/file").write_text("x")
    (tmp_path / "to-file").symlink_to(tmp_path / "dir/file")
    (tmp_path / "to-dir").symlink_to("dir")
    for parts in ([b"to-file"], [b"to-dir", b"file"]):
        with pytest.raises(OSError):
            open_regular(root, parts)
    os.close(open_regular(root, [b"dir", b"file"]))


def test_only_regular_files_are_opened(tmp_path, root):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "dir").mkdir()
    for name in (b"fifo", b"dir", b"missing"):
        with pytest.raises(FileNotFoundError):
            open_regular(root, [name])


def test_descriptors_are_not_leaked(tmp_path, root):
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/c").write_text("x")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        os.close(open_beneath(root, [b"a", b"b", b"c"], os.O_RDONLY))
        os.close(open_beneath(root, [], os.O_RDONLY | os.O_DIRECTORY))
        with pytest.raises(OSError):
            open_beneath(root, [b"a", b"x", b"c"], os.O_RDONLY)
    assert len(os.listdir("/proc/self/fd")) == before
