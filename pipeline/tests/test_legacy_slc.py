# SPDX-License-Identifier: Apache-2.0
"""The Rust framework's protocol: its bytes; our listener with a client as the Rust one; our client with one that lies.

The byte strings are what upstream's send_u64 and send_loop write.
"""

import contextlib
import dataclasses
import json
import os
import re
import secrets
import select
import socket
import subprocess
import threading
from pathlib import Path

import pytest
import yaml
from enclavekit_core import fabric
from enclavekit_core.address import VsockAddress
from enclavekit_core.errors import InputError, RemoteProtocolError
from enclavekit_core.streams import Listener, connect
from enclavekit_pipeline.wire import legacy_slc as slc
from hypothesis import given
from hypothesis import strategies as st

from .conftest import BIN, PCRS, emulated_nsm, listening
from .test_defences import children, until

REFERENCE = Path(__file__).resolve().parents[2] / "docs/reference/legacy-slc.md"
CID, PORT = 26, 53100
LYING_CID = 27
ENDING_CID = 28
WAIT_S = 20
DATA = secrets.token_bytes(2_000_000)


def integer(value):
    return value.to_bytes(8, "little") + b"\0"


def text(value):
    return integer(len(value)) + value


def test_integer_is_nine_bytes():
    assert slc.encode_integer(0x0102) == b"\x02\x01\0\0\0\0\0\0\0"
    assert slc.decode_integer(b"\x02\x01\0\0\0\0\0\0\xff", 1000, "x") == 0x0102  # upstream does not look at the ninth
    with pytest.raises(RemoteProtocolError):
        slc.decode_integer(integer(2**64 - 1), 1000, "x")


def test_reference_shows_these_bytes():
    shown = re.findall(r"^\| `([0-9a-f ]+)` \|", REFERENCE.read_text(), re.MULTILINE)
    expected = [slc.encode_integer(258), slc.encode_text("ls"), slc.encode_integer(1) + b"x"]
    assert [bytes.fromhex(row) for row in shown] == expected


@given(st.integers(0, 2**64 - 1))
def test_integers_there_and_back(value):
    assert slc.encode_integer(value) == integer(value)
    assert slc.decode_integer(integer(value), 2**64, "x") == value


@pytest.mark.parametrize("number", range(6))
def test_request_numbers(number):
    assert slc.decode_request(integer(number)) == number


def test_unknown_request_is_refused():
    with pytest.raises(RemoteProtocolError):
        slc.decode_request(integer(6))


def test_text_that_would_crash_a_rust_listener_is_not_sent():
    assert slc.encode_text("x" * slc.MAX_TEXT_BYTES)
    for bad in ("x" * (slc.MAX_TEXT_BYTES + 1), "\udcff"):
        with pytest.raises(InputError):
            slc.encode_text(bad)


@pytest.mark.parametrize("name", ["", "/etc/x", "../x", "a/../b", "a//b", "./a", "a/", ".."])
def test_names_that_lead_elsewhere(name):
    with pytest.raises(RemoteProtocolError):
        slc.check_tree_name(name)


@given(st.text(max_size=40))
def test_any_name_is_plain_or_refused(name):
    with contextlib.suppress(RemoteProtocolError):
        parts = slc.check_tree_name(name)
        joined = os.path.normpath(os.path.join("/base", *parts))
        assert joined.startswith("/base/")


@pytest.mark.parametrize(
    "data", [b"", b"{}", b'{"stdout":"","stderr":"","rc":1.5}', b"\xff", b'{"stdout":1,"stderr":"","rc":0}']
)
def test_results_that_are_none(data):
    with pytest.raises(RemoteProtocolError):
        slc.decode_result(data)


# our listener


@pytest.fixture(scope="module")
def debug(inside):
    """A listener of an enclave in debug mode, and the commands of a caller."""
    directory = inside.directory / "legacy"
    directory.mkdir()
    nsm = str(directory / "nsm")
    with emulated_nsm(nsm, str(inside.directory / "state"), pcrs={}):
        other = dataclasses.replace(inside, directory=directory, nsm_path=nsm)
        clients = [{"name": "a", "allow": ["exec"], "spki_sha256": "ab" * 32}]
        with listening(other, clients, cid=CID, flags=["--insecure-legacy-slc", PORT]):
            call(inside, "run", "--command", "true", "--connect-timeout", 20)
            yield inside


def call(inside, verb, *words, cid=CID, port=PORT):
    argv = [BIN / "pipeline", "--insecure-legacy-slc", verb, "--cid", cid, "--port", port, *words]
    return subprocess.run(list(map(str, argv)), env=inside.environment, capture_output=True, timeout=60)


@contextlib.contextmanager
def wire(inside, cid=CID, port=PORT):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(fabric.RUNTIME_DIR_VARIABLE, inside.environment[fabric.RUNTIME_DIR_VARIABLE])
        sock = connect(VsockAddress(cid, port))
    with sock:
        sock.settimeout(WAIT_S)
        yield sock


def read(sock, count):
    data = b""
    while len(data) < count:
        part = sock.recv(count - len(data))
        assert part, "it has hung up"
        data += part
    return data


def read_integer(sock):
    return int.from_bytes(read(sock, 9)[:8], "little")


def read_text(sock):
    return read(sock, read_integer(sock))


@pytest.mark.parametrize("number", [0, 3])
def test_run_as_the_rust_client_does(debug, number):
    with wire(debug) as sock:
        sock.sendall(integer(number) + text(b"echo out; echo err >&2; exit 7"))
        result = json.loads(read_text(sock))
    expected = {"stdout": "out\n", "stderr": "err\n", "rc": 7} if number == 0 else {"stdout": "", "stderr": "", "rc": 0}
    assert result == expected


def test_death_by_signal_is_no_success(debug):
    with wire(debug) as sock:
        sock.sendall(integer(0) + text(b"kill -9 $$"))
        assert json.loads(read_text(sock))["rc"] == 137


def test_command_without_a_shell_is_said(debug):
    shell = debug.app / "bin/sh"
    shell.rename(debug.app / "bin/away")
    try:
        for number in (0, 3):
            with wire(debug) as sock:
                sock.sendall(integer(number) + text(b"true"))
                result = json.loads(read_text(sock))
            assert (result["rc"], result["stderr"]) == (1, "cannot run a shell: there is none of bash, sh\n")
    finally:
        (debug.app / "bin/away").rename(shell)


def test_output_that_is_no_text_or_too_much_still_ends(debug):
    with wire(debug) as sock:
        sock.sendall(
            integer(0)
            + text(rb"printf '\377'; i=0; while [ $i -lt 90000 ]; do echo " + b"x" * 99 + rb"; i=$((i+1)); done")
        )
        result = json.loads(read_text(sock))
    assert result["stdout"].startswith("\N{REPLACEMENT CHARACTER}x")
    assert result["stdout"].endswith("is dropped\n")
    assert result["rc"] == 0


def allow_background(inside):
    """Without such a file the shell leaves nothing in the background."""
    (inside.app / "dev").mkdir(exist_ok=True)
    (inside.app / "dev/null").touch()


def test_daemon_that_holds_the_pipe_does_not_hold_the_answer(debug):
    fifo = debug.app / "data/fifo"
    os.mkfifo(fifo)
    allow_background(debug)
    with wire(debug) as sock:
        sock.sendall(integer(0) + text(b"{ read line < /data/fifo; : > /data/went-on; } & echo daemon"))
        result = json.loads(read_text(sock))
    assert (result["stdout"], result["rc"]) == ("daemon\n", 0)
    descriptor = os.open(fifo, os.O_RDWR)
    os.write(descriptor, b"line\n")
    with wire(debug) as sock:
        sock.sendall(integer(0) + text(b"while ! [ -e /data/went-on ]; do :; done"))
        assert json.loads(read_text(sock))["rc"] == 0
    os.close(descriptor)
    fifo.unlink()


def test_client_that_leaves_ends_its_command(debug):
    fifo = debug.app / "data" / "held"
    os.mkfifo(fifo)
    descriptor = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    with wire(debug) as sock:
        sock.sendall(integer(0) + text(b"exec 3> /data/held; echo x >&3; while :; do :; done"))
        os.set_blocking(descriptor, True)
        while os.read(descriptor, 2) != b"x\n":
            pass
    assert os.read(descriptor, 1) == b""  # nobody holds it any more
    os.close(descriptor)
    fifo.unlink()


def read_fifo(descriptor):
    assert select.select([descriptor], [], [], WAIT_S)[0], "nothing comes, and not the end"
    return os.read(descriptor, 64)


@pytest.fixture
def own(inside, tmp_path):
    """A listener of its own, whose children can be counted."""
    nsm = str(tmp_path / "nsm")
    with emulated_nsm(nsm, str(inside.directory / "state"), pcrs={}):
        other = dataclasses.replace(inside, directory=tmp_path, nsm_path=nsm)
        clients = [{"name": "a", "allow": ["exec"], "spki_sha256": "ab" * 32}]
        with listening(other, clients, cid=ENDING_CID, flags=["--insecure-legacy-slc", PORT]) as listener:
            call(inside, "run", "--command", "true", "--connect-timeout", 20, cid=ENDING_CID)
            yield listener


async def test_commands_that_nobody_waits_for_are_reaped(inside, own):
    for _ in range(3):
        with wire(inside, ENDING_CID) as sock:
            sock.sendall(integer(3) + text(b"exit 0"))
            assert json.loads(read_text(sock))["rc"] == 0
    await until(lambda: not children(own), "a command that has ended stays")


def test_listener_ends_with_its_commands(inside, own):
    """SIGTERM while one command runs with its client, one without, and one in the background of another."""
    allow_background(inside)
    fifo = inside.app / "data/still"
    os.mkfifo(fifo)
    descriptor = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    busy = b"exec 3> /data/still; echo x >&3; while :; do :; done"
    with contextlib.ExitStack() as stack:
        for number, command in ((0, busy), (3, busy), (0, b"(" + busy + b") & wait")):
            stack.enter_context(wire(inside, ENDING_CID)).sendall(integer(number) + text(command))
        os.set_blocking(descriptor, True)
        seen = b""
        while seen != b"x\nx\nx\n":
            seen += read_fifo(descriptor)
        own.terminate()
        assert own.wait(WAIT_S) == 0
    assert read_fifo(descriptor) == b""  # nobody holds it any more
    os.close(descriptor)
    fifo.unlink()


def test_files_as_the_rust_client_moves_them(debug):
    with wire(debug) as sock:
        sock.sendall(integer(2) + text(b"/data/new/deep/file") + integer(len(DATA)) + DATA)
        assert sock.recv(1) == b""  # the end says nothing; it comes once the file is there
    assert (debug.app / "data/new/deep/file").read_bytes() == DATA
    with wire(debug) as sock:
        sock.sendall(integer(1) + text(b"/data/new/deep/file"))
        assert read(sock, read_integer(sock)) == DATA


def test_trees_as_the_rust_client_moves_them(debug):
    files = {b"a": b"", b"sub/b": b"123", b"sub/deep/c": DATA[:70000]}
    with wire(debug) as sock:
        sock.sendall(integer(4) + text(b"/data/tree") + integer(len(files)))
        for name, content in files.items():
            sock.sendall(text(name) + integer(len(content)) + content)
        assert sock.recv(1) == b""
    os.symlink("/etc/passwd", debug.app / "data/tree/link")
    (debug.app / os.fsencode("data/tree/").decode() / os.fsdecode(b"\xff")).touch()
    with wire(debug) as sock:
        sock.sendall(integer(5) + text(b"/data/tree"))
        got = {}
        for _ in range(read_integer(sock)):
            name = read_text(sock)
            got[name] = read(sock, read_integer(sock))
    assert got == files


@pytest.mark.parametrize(
    "request_",
    [
        b"",
        integer(6),
        integer(2**63),
        integer(0) + integer(2**40),
        integer(0) + text(b"\xff"),
        integer(1) + text(b"/no/such"),
        integer(1) + text(b"/data"),
        integer(1) + text(b"a\0b"),
        integer(2) + text(b"/data/../../x") + integer(0),
        integer(2) + text(b"/") + integer(0),
        integer(2) + text(b"/data/cut") + integer(1000) + b"x",
        integer(2) + text(b"/data/cut") + integer(2**60),
        integer(4) + text(b"/data/t") + integer(1) + text(b"../evil") + integer(0),
        integer(4) + text(b"/data/t") + integer(1) + text(b"/data/evil") + integer(0),
        integer(4) + text(b"/data/t") + integer(2**50),
    ],
)
def test_nonsense_and_early_ends_cost_one_connection(debug, request_):
    with wire(debug) as sock:
        sock.sendall(request_)
        sock.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionResetError):
            assert sock.recv(1) == b""
    assert not [name for name in os.listdir(debug.app / "data") if "evil" in name or "cut" in name]
    assert not (debug.app / "data/t").exists()
    assert call(debug, "run", "--command", "exit 3").returncode == 3


def test_app_s_links_do_not_lead_out(debug, tmp_path):
    (tmp_path / "secret").write_text("secret")
    os.symlink(tmp_path, debug.app / "data/out")
    with wire(debug) as sock:
        sock.sendall(integer(1) + text(b"/data/out/secret"))
        assert sock.recv(1) == b""
    with wire(debug) as sock:
        sock.sendall(integer(2) + text(b"/data/out/new") + integer(0))
        assert sock.recv(1) == b""
    assert os.listdir(tmp_path) == ["secret"]
    (debug.app / "data/out").unlink()


def test_crowd_keeps_nobody_out_for_long(debug):
    with contextlib.ExitStack() as stack:
        crowd = [stack.enter_context(wire(debug)) for _ in range(40)]
        assert crowd[-1].recv(1) == b""  # one too many
    for _ in range(100):  # those who left are noticed soon
        if (done := call(debug, "run", "--command", "exit 4")).returncode == 4:
            break
    assert done.returncode == 4


def test_refused_unless_in_debug_mode(inside, tmp_path):
    nsm = str(tmp_path / "nsm")
    clients = tmp_path / "clients.yaml"
    clients.write_text(yaml.safe_dump({"clients": [{"name": "a", "allow": ["exec"], "spki_sha256": "ab" * 32}]}))
    for pcrs in (PCRS, {2: PCRS[2]}):
        with emulated_nsm(nsm, str(inside.directory / "state"), pcrs=pcrs):
            argv = [BIN / "pipeline", "listen", "--clients", clients, "--nsm", nsm, "--insecure-legacy-slc", PORT]
            environment = {**inside.environment, fabric.RUNTIME_DIR_VARIABLE: str(inside.directory / "view")}
            done = subprocess.run(list(map(str, argv)), env=environment, capture_output=True, timeout=30)
        assert done.returncode == 2
        assert b"not in debug mode" in done.stderr
        os.unlink(nsm)


# our client


def test_client_runs_commands(debug):
    done = call(debug, "run", "--command", "echo out; echo err >&2; exit 7")
    assert (done.returncode, done.stdout) == (7, b"out\n")
    assert done.stderr.endswith(b"err\n")
    assert call(debug, "run", "--no-wait", "--command", "exit 7").returncode == 0


def test_client_moves_files_and_trees(debug, tmp_path):
    (tmp_path / "tree/sub").mkdir(parents=True)
    (tmp_path / "tree/sub/b").write_bytes(DATA)
    (tmp_path / "tree/a").write_bytes(b"")
    for verb, words in {
        "send-dir": ("--localdir", tmp_path / "tree", "--remotedir", "/data/of-client"),
        "recv-dir": ("--remotedir", "/data/of-client", "--localdir", tmp_path / "back"),
        "recv-file": ("--remotepath", "/data/of-client/sub/b", "--localpath", tmp_path / "file"),
        "send-file": ("--localpath", tmp_path / "file", "--remotepath", "/data/of-client/again"),
    }.items():
        done = call(debug, verb, *words)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "back/sub/b").read_bytes() == DATA == (tmp_path / "file").read_bytes()
    assert (tmp_path / "back/a").read_bytes() == b""
    with wire(debug) as sock:  # nobody else says when it has arrived
        sock.sendall(integer(0) + text(b"while ! [ -e /data/of-client/again ]; do :; done"))
        read_text(sock)
    assert (debug.app / "data/of-client/again").read_bytes() == DATA


def test_client_s_failures_leave_nothing(debug, tmp_path):
    for verb, words in {
        "recv-file": ("--remotepath", "/no/such", "--localpath", tmp_path / "new"),
        "recv-dir": ("--remotedir", "/no/such", "--localdir", tmp_path / "new"),
        "send-file": ("--localpath", tmp_path / "no", "--remotepath", "/data/no"),
        "send-dir": ("--localdir", tmp_path / "no", "--remotedir", "/data/no"),
    }.items():
        done = call(debug, verb, *words)
        assert done.returncode in (2, 3)
        assert b"pipeline: cannot " in done.stderr
    assert os.listdir(tmp_path) == []
    assert call(debug, "run", "--command", "true", "--connect-timeout", 0.2, port=1).returncode == 255


@contextlib.contextmanager
def lying(inside, answer):
    """A Rust listener that says `answer` to whatever it hears, and hangs up."""
    host = inside.environment[fabric.RUNTIME_DIR_VARIABLE]
    os.makedirs(f"{host}/fabric/{LYING_CID}", exist_ok=True)
    fabric.write_record(f"{host}/registry/{LYING_CID}.json", {"cid": LYING_CID, "transport": "fabric"})
    view = inside.directory / "lying"
    if not view.exists():
        os.makedirs(view / "registry")
        os.symlink(f"{host}/fabric", view / "fabric")
        fabric.write_record(str(view / "registry/self.json"), {"cid": LYING_CID})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(fabric.RUNTIME_DIR_VARIABLE, str(view))
        listener = Listener(VsockAddress(0xFFFFFFFF, PORT))

    def serve():
        sock, _ = listener.accept()
        with sock, contextlib.suppress(OSError):
            sock.recv(65536)
            sock.sendall(answer)
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(65536):
                pass

    with listener:
        thread = threading.Thread(target=serve)
        thread.start()
        yield
        thread.join(WAIT_S)


@pytest.mark.parametrize(
    "name", [b"../evil", b"/tmp/evil", b"s/../../evil", b"link/evil", b"evil\0", b"\xffevil", b"."]
)
def test_host_takes_no_name_that_leads_elsewhere(inside, tmp_path, name):
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    os.symlink(tmp_path / "out", tmp_path / "in/link")
    with lying(inside, integer(2) + text(b"good") + integer(1) + b"g" + text(name) + integer(1) + b"e"):
        done = call(inside, "recv-dir", "--remotedir", "/d", "--localdir", tmp_path / "in", cid=LYING_CID)
    assert done.returncode in (2, 3)
    assert sorted(os.listdir(tmp_path / "in")) == ["good", "link"]
    assert sorted(os.listdir(tmp_path)) == ["in", "out"]
    assert os.listdir(tmp_path / "out") == []


@pytest.mark.parametrize("answer", [b"", b"\x05", integer(2**62), integer(10) + b"cut", integer(2**30) + b"x"])
def test_host_keeps_nothing_of_a_cut_file(inside, tmp_path, answer):
    with lying(inside, answer):
        words = ("--remotepath", "/d", "--localpath", tmp_path / "file")
        done = call(inside, "recv-file", *words, cid=LYING_CID)
    assert done.returncode == 3
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (text(b'{"stdout":"","stderr":"","rc":null}'), 255),
        (text(b'{"stdout":"","stderr":"","rc":-1}'), 255),
        (text(b'{"stdout":"a","stderr":"","rc":0}'), 0),
        (text(b"[]"), 255),
        (integer(2**40), 255),
        (b"", 255),
    ],
)
def test_host_reads_results_strictly(inside, answer, status):
    with lying(inside, answer):
        assert call(inside, "run", "--command", "x", cid=LYING_CID).returncode == status
