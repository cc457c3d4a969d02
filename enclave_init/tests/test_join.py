# SPDX-License-Identifier: Apache-2.0
"""Files that the archive could not hold: the list, the plan, and the joining, byte for byte."""

import hashlib
import json
import os
import secrets
from dataclasses import replace

import pytest
from enclavekit_core.errors import ConfigError, InputError, VerificationError
from enclavekit_core.split_files import FileCapability, FileList, SplitFile, decode_file_list, encode_file_list
from enclavekit_enclave_init.boot import join
from enclavekit_enclave_init.boot import plan as bp
from enclavekit_enclave_init.config import InitConfig

FILE = SplitFile(
    names=("/rootfs/big", "/rootfs/also-\udcff"),
    size=10,
    sha256="0" * 64,
    mode=0o4755,
    uid=7,
    gid=8,
    mtime=0,
    parts=("/.split/0000/0000", "/.split/0000/0001"),
)
LIST = FileList((FILE,), (FileCapability("/rootfs/ping", "0100000200200000" + "00" * 12),))


@pytest.fixture
def image(tmp_path):
    """Return a function that lays `content` out in parts of `step` bytes and describes it."""

    def make(content, step, **changes):
        folder = tmp_path / ".split/0000"
        folder.mkdir(parents=True)
        (tmp_path / "rootfs").mkdir()
        os.utime(tmp_path / "rootfs", (0, 0))
        names = []
        for number, start in enumerate(range(0, len(content), step)):
            (folder / f"{number:04d}").write_bytes(content[start : start + step])
            names.append(f"/.split/0000/{number:04d}")
        made = SplitFile(
            names=("/rootfs/big", "/rootfs/twin"),
            size=len(content),
            sha256=hashlib.sha256(content).hexdigest(),
            mode=0o640,
            uid=os.geteuid(),
            gid=os.getegid(),
            mtime=5,
            parts=tuple(names),
        )
        return replace(made, **changes)

    return make


def test_list_goes_both_ways_and_is_the_same_each_time():
    raw = encode_file_list(LIST)
    assert decode_file_list(raw) == LIST
    assert encode_file_list(decode_file_list(raw)) == raw


def _change(path, value):
    document = json.loads(encode_file_list(LIST))
    here = document
    for key in path[:-1]:
        here = here[key]
    here[path[-1]] = value
    return json.dumps(document).encode()


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"[]",
        b"[" * 100_000,
        _change(["version"], 2),
        _change(["more"], []),
        _change(["split"], {}),
        _change(["split", 0, "more"], 1),
        _change(["split", 0, "names"], []),
        _change(["split", 0, "names"], ["rootfs/x"]),
        _change(["split", 0, "names"], ["/rootfs/../init"]),
        _change(["split", 0, "names"], ["/rootfs//x"]),
        _change(["split", 0, "parts"], ["/a\0"]),
        _change(["split", 0, "size"], -1),
        _change(["split", 0, "size"], True),
        _change(["split", 0, "mode"], 0o10000),
        _change(["split", 0, "uid"], 1 << 32),
        _change(["split", 0, "sha256"], "0" * 63),
        _change(["split", 0, "mtime"], "0"),
        _change(["capabilities", 0, "value"], "0g"),
        _change(["capabilities", 0, "name"], "x"),
        _change(["capabilities", 0], 5),
    ],
)
def test_a_list_that_is_not_understood_stops_the_boot(raw):
    with pytest.raises(ConfigError):
        decode_file_list(raw)


def test_every_cut_of_a_list_is_refused():
    raw = encode_file_list(LIST).rstrip()
    for end in range(len(raw)):
        with pytest.raises(ConfigError):
            decode_file_list(raw[:end])


def test_plan_joins_before_the_heartbeat_and_removes_what_is_empty():
    plan = bp.plan_system(InitConfig(), owns_machine=False, has_nsm=True, files=LIST)
    kinds = [type(operation).__name__ for operation in plan]
    assert kinds[-4:] == ["JoinFile", "RemoveDirectories", "SetCapability", "Heartbeat"]
    assert plan[-3].paths == ("/.split/0000", "/.split")
    assert plan[-4].required and plan[-3].required and not plan[-2].required


def test_an_image_without_a_list_has_nothing_to_do(tmp_path):
    assert join.read_file_list(str(tmp_path / "none")) == FileList()
    assert bp.plan_files(FileList()) == []


def test_a_list_that_cannot_be_read_is_not_taken_for_none(tmp_path):
    with pytest.raises(InputError):
        join.read_file_list(str(tmp_path))


@pytest.mark.parametrize("size", [1, 99, 100, 101, 1000, 3 * join.CHUNK_BYTES + 17])
def test_join_gives_the_content_back(image, tmp_path, size):
    content = secrets.token_bytes(size)
    file = image(content, 100 if size < 5000 else 2 * join.CHUNK_BYTES + 5)
    join.join_file(file, str(tmp_path))
    status = (tmp_path / "rootfs/big").stat()
    assert (tmp_path / "rootfs/big").read_bytes() == content
    assert (status.st_mode & 0o7777, status.st_mtime, status.st_nlink) == (0o640, 5, 2)
    assert (tmp_path / "rootfs/twin").samefile(tmp_path / "rootfs/big")
    assert (tmp_path / "rootfs").stat().st_mtime == 0
    assert os.listdir(tmp_path / ".split/0000") == []


def test_join_never_has_more_than_a_chunk_twice(image, tmp_path, monkeypatch):
    monkeypatch.setattr(join, "CHUNK_BYTES", 4096)
    content = secrets.token_bytes(200_000)
    file = image(content, 65536)
    folder = tmp_path / ".split/0000"
    seen = []

    def count(fd, size):
        truncate(fd, size)
        seen.append(sum(path.stat().st_blocks * 512 for path in folder.iterdir()))

    truncate = os.ftruncate
    monkeypatch.setattr(os, "ftruncate", count)
    join.join_file(file, str(tmp_path))
    assert len(seen) > 30
    assert max(seen) <= len(content) + 4 * 4096  # parts end within a block


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "0001").write_bytes(b"x" * 100),
        lambda folder: (folder / "0001").write_bytes(b""),
        lambda folder: (folder / "0002").unlink(),
        lambda folder: ((folder / "0001").unlink(), (folder / "0001").symlink_to("/etc/hostname")),
    ],
    ids=["other bytes", "cut", "missing", "link"],
)
def test_join_refuses_parts_that_are_not_the_images(image, tmp_path, damage):
    file = image(secrets.token_bytes(250), 100)
    damage(tmp_path / ".split/0000")
    with pytest.raises((OSError, InputError, VerificationError)):
        join.join_file(file, str(tmp_path))
    assert os.listdir(tmp_path / "rootfs") == []


def test_join_replaces_nothing(image, tmp_path):
    file = image(b"x" * 250, 100)
    (tmp_path / "rootfs/big").write_text("mine")
    with pytest.raises(FileExistsError):
        join.join_file(file, str(tmp_path))
    assert (tmp_path / "rootfs/big").read_text() == "mine"
