# SPDX-License-Identifier: Apache-2.0
"""cp against a real listener: content, modes, names, rights, and nothing half-made."""

import os
import secrets
import shutil
import signal
import subprocess
import threading

import msgspec
import pytest
from enclavekit_pipeline.enclave.clients import Grant, Refused
from enclavekit_pipeline.enclave.root import Root
from enclavekit_pipeline.enclave.serve_copy import open_source, open_target
from enclavekit_pipeline.wire.copy_messages import CopyInRequest

from .conftest import BIN, CID

DATA = secrets.token_bytes(2_500_001)


@pytest.fixture(autouse=True)
def clean(enclave, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.rmtree(enclave.app / "data")
    (enclave.app / "data/in").mkdir(parents=True)


def inside_names(enclave):
    return sorted(path.name for path in (enclave.app / "data").iterdir() if path.name != "in")


def test_both_ways_keep_content_mode_and_time(enclave, tmp_path):
    source = tmp_path / "a.bin"
    source.write_bytes(DATA)
    source.chmod(0o751)
    os.utime(source, ns=(1_700_000_000_123_456_789,) * 2)
    assert enclave.run("cp", source, f"{CID}:/data/b.bin").returncode == 0
    assert enclave.run("cp", f"{CID}:/data/b.bin", tmp_path / "c.bin").returncode == 0
    for path in (enclave.app / "data/b.bin", tmp_path / "c.bin"):
        assert path.read_bytes() == DATA
        assert path.stat().st_mode & 0o7777 == 0o751
        assert path.stat().st_mtime_ns == 1_700_000_000_123_456_789
    assert inside_names(enclave) == ["b.bin"]


def test_directories_take_the_file_under_its_name(enclave, tmp_path):
    (tmp_path / "x").write_bytes(b"1")
    (tmp_path / "out").mkdir()
    assert enclave.run("cp", "x", f"{CID}:/data").returncode == 0
    assert enclave.run("cp", f"{CID}:/data/x", "out").returncode == 0
    assert (tmp_path / "out/x").read_bytes() == b"1"


def test_standard_streams(enclave):
    assert enclave.run("cp", "-", f"{CID}:/data/s", stdin=DATA).returncode == 0
    assert enclave.run("cp", f"{CID}:/data/s", "-").stdout == DATA


def test_existing_file_is_replaced_as_a_whole(enclave, tmp_path):
    old = b"old and longer than the new one"
    (enclave.app / "data/f").write_bytes(old)
    if os.geteuid() == 0:
        os.chown(enclave.app / "data/f", 1234, 55)
    before = (enclave.app / "data/f").stat()
    (tmp_path / "f").write_bytes(b"new")
    (tmp_path / "f").chmod(0o4755)
    with open(enclave.app / "data/f", "rb") as held:
        assert enclave.run("cp", "f", f"{CID}:/data/f").returncode == 0
        assert held.read() == old  # whoever reads the old one goes on reading it
    after = (enclave.app / "data/f").stat()
    assert (enclave.app / "data/f").read_bytes() == b"new"
    # the owner stays, as with cp; set-id bits do not travel
    assert (after.st_uid, after.st_gid, after.st_mode & 0o7777) == (before.st_uid, before.st_gid, 0o755)


@pytest.mark.parametrize(
    ("source", "target", "code"),
    [
        ("none", f"{CID}:/data/x", 2),
        ("file", f"{CID}:/no/such/x", 2),
        ("file", f"{CID}:/data/..", 0),  # the root of the app, where `file` then is
        ("file", f"{CID}:/data/none/", 2),
        (f"{CID}:/etc/account", "none/", 2),  # cp would make no file `none` either
        (f"{CID}:/etc/account", "file/", 2),
        (f"{CID}:/data/none", "here", 2),
        (f"{CID}:/data/..", ".", 2),
        (f"{CID}:relative", "here", 2),
        ("file", "other", 2),
        (f"{CID}:/a", f"{CID}:/b", 2),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(enclave, tmp_path, source, target, code):
    (tmp_path / "file").write_bytes(b"x")
    (enclave.app / "etc/account").write_bytes(b"y")
    done = enclave.run("cp", source, target)
    assert done.returncode == code, done.stderr
    assert (tmp_path / "file").read_bytes() == b"x"
    lines = [line for line in done.stderr.decode().splitlines() if "warning" not in line]
    assert len(lines) == (1 if code else 0)
    assert all(line.startswith("pipeline: cannot ") for line in lines)
    assert inside_names(enclave) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


@pytest.mark.parametrize("link", ["/etc", "../../../../etc", "/data/../../etc"])
def test_links_that_the_app_planted_stay_in_its_root(enclave, tmp_path, link):
    (tmp_path / "file").write_bytes(b"x")
    os.symlink(link, enclave.app / "data/way-out")
    assert enclave.run("cp", "file", f"{CID}:/data/way-out/planted").returncode == 0
    assert (enclave.app / "etc/planted").read_bytes() == b"x"
    assert not os.path.exists("/etc/planted")
    (enclave.app / "etc/planted").unlink()
    assert enclave.run("cp", f"{CID}:/data/way-out/hostname", "got").returncode == 2


def test_special_files_are_refused_and_hold_nothing_up(enclave, tmp_path):
    os.mkfifo(enclave.app / "data/pipe")
    (tmp_path / "file").write_bytes(b"x")
    assert enclave.run("cp", f"{CID}:/data/pipe", "got").returncode == 2
    assert enclave.run("cp", "--system", f"{CID}:/dev/null", tmp_path / "got").returncode == 2  # it would be readable
    assert not (tmp_path / "got").exists()
    assert enclave.run("cp", "file", f"{CID}:/data/pipe").returncode == 2
    assert inside_names(enclave) == ["pipe"]


def test_what_is_refused_is_not_opened(tmp_path):
    """Whoever waits for a reader of a FIFO goes on as soon as one opens it."""
    os.mkfifo(tmp_path / "pipe")
    waiting = threading.Thread(target=lambda: open(tmp_path / "pipe", "wb").close())
    waiting.start()
    grant = Grant(name="a", allow=["cp-out"])
    for read, refusal in ((None, OSError), (["/data"], Refused)):
        with pytest.raises(refusal):
            open_source(Root(str(tmp_path)), "/pipe", msgspec.structs.replace(grant, read=read))
    waiting.join(0.2)
    assert waiting.is_alive()
    with open(tmp_path / "pipe", "rb"):
        waiting.join()


def test_what_is_not_there_is_not_told_where_one_may_not_go(enclave, tmp_path):
    (tmp_path / "file").write_bytes(b"x")
    for words in (
        (f"{CID}:/etc/none", "got"),
        ("file", f"{CID}:/etc/none/x"),
        ("file", f"{CID}:/data/in/../../none/x"),
    ):
        assert enclave.run("cp", *words, identity="bob").returncode == 3, words
    assert enclave.run("cp", f"{CID}:/data/none", "got", identity="bob").returncode == 2


def test_delta_tells_nobody_what_he_may_not_read(tmp_path):
    root, writer = Root(str(tmp_path)), Grant(name="a", allow=["cp-in"])
    (tmp_path / "file").write_bytes(b"1234")
    with pytest.raises(Refused, match="delta"):
        open_target(root, CopyInRequest(path="/file", name="file", delta=True), writer)
    reader = msgspec.structs.replace(writer, allow=["cp-in", "cp-out"])
    for grant, delta in ((writer, False), (reader, True)):
        directory, name = open_target(root, CopyInRequest(path="/file", name="file", delta=delta), grant)
        os.close(directory)
        assert name == "file"


def test_paths_are_granted_by_where_they_lead(enclave, tmp_path):
    (tmp_path / "file").write_bytes(b"x")
    (enclave.app / "etc/secret").write_bytes(b"s")
    os.symlink("/etc/secret", enclave.app / "data/alias")
    for source, target in (
        (f"{CID}:/etc/secret", "got"),
        (f"{CID}:/data/../etc/secret", "got"),
        (f"{CID}:/data/alias", "got"),
        ("file", f"{CID}:/data/file"),
        ("file", f"{CID}:/data/in/../file"),
    ):
        done = enclave.run("cp", source, target, identity="bob")
        assert done.returncode == 3, (source, target)
    (enclave.app / "data/alias").unlink()
    assert enclave.run("cp", "file", f"{CID}:/data/in", identity="bob").returncode == 0
    assert (enclave.app / "data/in/file").read_bytes() == b"x"
    (enclave.app / "data/ok").write_bytes(b"ok")
    assert enclave.run("cp", f"{CID}:/data/ok", "got", identity="bob").returncode == 0
    (enclave.app / "etc/secret").unlink()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_copy_cut_in_the_middle_leaves_nothing(enclave, tmp_path, number):
    words = [BIN / "pipeline", "cp", *enclave.flags(), "-", f"{CID}:/data/in/half"]
    with subprocess.Popen(words, env=enclave.environment, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL) as copying:
        copying.stdin.write(DATA)  # more than pipe and credit hold: it is half-way in the enclave when this returns
        copying.send_signal(number)
    # the listener still serves, and what it answers comes after it has noticed
    assert enclave.run("cp", f"{CID}:/data/in/half", "got").returncode == 2
    assert list((enclave.app / "data/in").iterdir()) == []
    assert list(tmp_path.iterdir()) == []


def test_copy_out_cut_in_the_middle_leaves_nothing(enclave, tmp_path):
    (enclave.app / "data/big").write_bytes(DATA * 8)
    words = [BIN / "pipeline", "cp", *enclave.flags(), f"{CID}:/data/big", "-"]
    with subprocess.Popen(words, env=enclave.environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as copying:
        copying.stdout.read(1)
        copying.terminate()
    assert copying.returncode == 143
    assert enclave.run("cp", f"{CID}:/data/big", "got").returncode == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["got"]
