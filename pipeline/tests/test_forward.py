# SPDX-License-Identifier: Apache-2.0
"""Forwards against a real listener, which shares this machine's network: what is in the enclave is served here, and
Unix sockets are in the app's root."""

import asyncio
import contextlib
import dataclasses
import json
import os
import secrets
import signal
import socket
import struct
import subprocess
import threading

import pytest
from enclavekit_core import fabric
from enclavekit_core.address import TcpAddress, UnixAddress
from enclavekit_core.errors import ConfigError, RemoteProtocolError
from enclavekit_pipeline import Enclave
from enclavekit_pipeline.host import forward_client
from enclavekit_pipeline.host.forward_client import Forwarding
from enclavekit_pipeline.host.forward_rules import Forward, parse_forward
from enclavekit_pipeline.wire.frames import Frame, Kind

from .conftest import BIN, CID, PCRS, grant, listening

DATA = secrets.token_bytes(3_000_000)
WAIT_S = 20
KINDS = ("tcp", "unix")
OTHER_CID = 24


@contextlib.contextmanager
def serving(address, handle):
    """Call `handle(connection)` for each connection, in threads; yield the address in the form of LISTEN and TARGET."""
    family = socket.AF_INET if isinstance(address, tuple) else socket.AF_UNIX
    with socket.socket(family) as listener:
        listener.bind(address)
        listener.listen(128)

        def serve(connection):
            with connection, contextlib.suppress(OSError):
                connection.settimeout(WAIT_S)
                handle(connection)

        def accept():
            with contextlib.suppress(OSError):
                while True:
                    threading.Thread(target=serve, args=[listener.accept()[0]], daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield str(listener.getsockname()[1]) if family == socket.AF_INET else f"unix:{address}"
        listener.shutdown(socket.SHUT_RDWR)


def read_all(connection):
    parts = []
    while part := connection.recv(1 << 20):
        parts.append(part)
    return b"".join(parts)


def echo(connection):
    """Answer once all is there, backwards: only a half-close lets this end."""
    connection.sendall(read_all(connection)[::-1])


def echo_at_once(connection):
    while data := connection.recv(65536):
        connection.sendall(data)


def connect(line):
    """Connect to what a line of `pipeline forward` says listens here."""
    address = line.split()[1]
    if address.startswith("tcp://"):
        host, port = address.removeprefix("tcp://").split(":")
        return socket.create_connection((host, int(port)), timeout=WAIT_S)
    return connect_unix(address.removeprefix("unix://"))


def connect_unix(path):
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(WAIT_S)
    sock.connect(os.fspath(path))
    return sock


@contextlib.contextmanager
def forwarded(enclave, handle):
    """Serve on TCP in the enclave, forward to it; yield the line that says where."""
    with serving(("127.0.0.1", 0), handle) as target, forwarding(enclave, "-L", f"0={target}") as (_, [line]):
        yield line


@contextlib.contextmanager
def forwarding(enclave, *flags, identity="alice", cid=CID):
    """Run `pipeline forward`; yield the process and the line of each forward."""
    words = [BIN / "pipeline", "forward", *enclave.flags(identity), *flags, cid]
    with subprocess.Popen(
        list(map(str, words)), env=enclave.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            count = sum(flag in ("-L", "-R") for flag in flags)
            yield process, [process.stdout.readline() for _ in range(count)]
        finally:
            process.terminate()
            process.wait(WAIT_S)


def complaint(process):
    """Return the next line of complaint, warnings apart."""
    return next(line for line in process.stderr if "warning" not in line)


def refused(enclave, *flags, identity="bob"):
    done = enclave.run("forward", *flags, CID, identity=identity)
    lines = [line for line in done.stderr.decode().splitlines() if "warning" not in line]
    assert (len(lines), done.returncode) == (1, 3), lines
    return lines[0]


@pytest.fixture(scope="module")
def enclave(inside):
    clients = [
        grant(inside, "alice", allow=["dial", "listen-remote"], system=True),
        grant(
            inside,
            "bob",
            allow=["dial", "listen-remote"],
            forward=["tcp://127.0.0.1:9", "unix:///data/granted"],
            reverse=["tcp://127.0.0.1:0", "unix:///data/in"],
        ),
    ]
    with listening(inside, clients):
        yield inside


@pytest.fixture
def short(enclave):
    """A directory of the app with a short name: a Unix socket's path has 107 bytes."""
    path = enclave.app / "data" / secrets.token_hex(3)
    path.mkdir()
    return path


def inside_name(enclave, path):
    return f"unix:/{path.relative_to(enclave.app)}"


@pytest.mark.parametrize("there", KINDS)
@pytest.mark.parametrize("here", KINDS)
def test_local_forward_carries_bytes_and_half_close(enclave, short, tmp_path, here, there):
    listen = "0" if here == "tcp" else f"unix:{tmp_path}/here"
    with serving(("127.0.0.1", 0) if there == "tcp" else str(short / "s"), echo) as target:
        target = target if there == "tcp" else inside_name(enclave, short / "s")
        with forwarding(enclave, "-L", f"{listen}={target}") as (_, [line]), connect(line) as sock:
            sock.sendall(DATA)
            sock.shutdown(socket.SHUT_WR)
            assert read_all(sock) == DATA[::-1]


@pytest.mark.parametrize("there", KINDS)
@pytest.mark.parametrize("here", KINDS)
def test_reverse_forward_carries_bytes_and_half_close(enclave, short, tmp_path, here, there):
    listen = "0" if there == "tcp" else inside_name(enclave, short / "s")
    with (
        serving(("127.0.0.1", 0) if here == "tcp" else f"{tmp_path}/here", echo) as target,
        forwarding(enclave, "-R", f"{listen}={target}") as (_, [line]),
        connect(line) if there == "tcp" else connect_unix(short / "s") as sock,
    ):
        sock.sendall(DATA)
        sock.shutdown(socket.SHUT_WR)
        assert read_all(sock) == DATA[::-1]
    assert not (short / "s").exists()


def test_server_that_ends_first_still_hears_the_rest(enclave):
    heard = threading.Event()

    def handle(connection):
        connection.sendall(b"goodbye")
        connection.shutdown(socket.SHUT_WR)
        if read_all(connection) == DATA:
            heard.set()

    with forwarded(enclave, handle) as line:
        with connect(line) as sock:
            assert read_all(sock) == b"goodbye"
            sock.sendall(DATA)
        assert heard.wait(WAIT_S)


@pytest.mark.parametrize("kind", KINDS)
def test_answer_of_a_server_that_reads_no_further_arrives(enclave, short, kind):
    """As a web server that refuses a large upload: it answers and closes while the upload is still under way."""

    def handle(connection):
        connection.recv(1)
        connection.sendall(b"too large")
        connection.shutdown(socket.SHUT_RDWR if kind == "unix" else socket.SHUT_WR)

    with serving(("127.0.0.1", 0) if kind == "tcp" else str(short / "s"), handle) as target:
        target = target if kind == "tcp" else inside_name(enclave, short / "s")
        with forwarding(enclave, "-L", f"0={target}") as (_, [line]), connect(line) as sock:
            sending = threading.Thread(target=send, args=[sock])
            sending.start()
            assert sock.recv(100) == b"too large"
        sending.join(WAIT_S)
        assert not sending.is_alive()


@pytest.mark.parametrize("orderly", [True, False])
def test_large_answer_of_a_server_that_has_closed_arrives_whole(enclave, short, orderly):
    """What the client still sends must not turn into a reset that destroys the answer on its way; and where the server
    itself resets, what it said before goes first."""

    def handle(connection):
        connection.recv(1)
        if orderly:
            connection.shutdown(socket.SHUT_RD)
            read_all(connection)
        connection.sendall(DATA)  # closed with bytes unread, a socket is reset

    target = inside_name(enclave, short / "s")
    with (
        serving(str(short / "s"), handle),
        forwarding(enclave, "-L", f"0={target}") as (_, [line]),
        connect(line) as sock,
    ):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32768)  # so that much is still on its way at the end
        sending = threading.Thread(target=send, args=[sock])
        sending.start()
        got = b""
        while len(got) < len(DATA):
            part = sock.recv(1 << 20)
            assert part, "the end came too early"
            got += part
        assert got == DATA
    sending.join(WAIT_S)


def send(sock):
    with contextlib.suppress(OSError):
        for _ in range(20):
            sock.sendall(DATA)


def reset(connection):
    connection.recv(1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def test_reset_stays_a_reset(enclave):
    with forwarded(enclave, reset) as line, connect(line) as sock:
        sock.sendall(b"x")
        with pytest.raises(ConnectionResetError):
            sock.recv(1)


def test_one_that_does_not_read_holds_nobody_up(enclave):
    with forwarded(enclave, echo_at_once) as line, connect(line) as stalled, connect(line) as sock:
        stalled.settimeout(0.5)
        with contextlib.suppress(TimeoutError):
            while True:
                stalled.send(DATA)  # until every buffer on the way and back is full
        sock.sendall(b"x")
        assert sock.recv(1) == b"x"


def test_many_connections_at_once(enclave):
    with forwarded(enclave, echo_at_once) as line, contextlib.ExitStack() as stack:
        socks = [stack.enter_context(connect(line)) for _ in range(200)]  # more than are carried at once
        for number, sock in enumerate(socks):
            sock.sendall(b"%d" % number)
            sock.shutdown(socket.SHUT_WR)
        assert [read_all(sock) for sock in socks] == [b"%d" % number for number in range(200)]


def test_target_that_is_not_there_is_one_connections_affair(enclave, short):
    target = inside_name(enclave, short / "s")
    with forwarding(enclave, "-L", f"0={target}") as (process, [line]):
        with connect(line) as sock, pytest.raises(ConnectionResetError):
            sock.recv(1)
        assert f"cannot connect to {target.replace(':', '://')} in the enclave: no such file" in complaint(process)
        with serving(str(short / "s"), echo), connect(line) as sock:
            sock.shutdown(socket.SHUT_WR)
            assert sock.recv(1) == b""


def test_reverse_target_that_is_not_there_resets_and_says_so_here(enclave, short, tmp_path):
    with forwarding(enclave, "-R", f"{inside_name(enclave, short / 's')}=unix:{tmp_path}/no") as (process, _):
        with connect_unix(short / "s") as sock, contextlib.suppress(ConnectionResetError):
            assert sock.recv(1) == b""
        assert f"cannot connect to unix://{tmp_path}/no: no such file" in complaint(process)


def test_several_forwards_share_one_session(enclave, short, tmp_path):
    flags = ["-L", f"unix:{tmp_path}/there={inside_name(enclave, short / 's')}"]
    flags += ["-R", f"{inside_name(enclave, short / 's')}=unix:{tmp_path}/here"]
    with serving(f"{tmp_path}/here", echo), forwarding(enclave, *flags) as (_, [line, _]), connect(line) as sock:
        sock.sendall(DATA)  # in, and out again
        sock.shutdown(socket.SHUT_WR)
        assert read_all(sock) == DATA[::-1]


def test_end_by_signal_is_clean(enclave, tmp_path):
    with forwarding(enclave, "-L", f"unix:{tmp_path}/here=9") as (process, [line]):
        assert line == f"-L unix://{tmp_path}/here -> tcp://127.0.0.1:9\n"
        assert os.stat(tmp_path / "here").st_mode & 0o777 == 0o600
        process.send_signal(signal.SIGINT)
        assert process.wait(WAIT_S) == 0
    assert not (tmp_path / "here").exists()


def test_end_of_the_enclave_ends_forwards(inside, tmp_path):
    other = dataclasses.replace(inside, directory=tmp_path)
    with (
        listening(other, [grant(inside, "alice", allow=["dial"])], cid=OTHER_CID) as listener,
        forwarding(inside, "-L", "0=9", cid=OTHER_CID) as (process, _),
    ):
        listener.kill()
        assert process.wait(WAIT_S) == 3
        assert "cannot " in complaint(process)


@pytest.mark.parametrize(
    ("flags", "identity"),
    [(["-R", "8888=1"], "bob"), (["-R", "unix:/data/other=1"], "bob"), (["-R", "unix:/tmp/in=1"], "bob")],
)
def test_reverse_listeners_must_be_granted(enclave, flags, identity):
    assert "bob may not listen there" in refused(enclave, *flags, identity=identity)


@pytest.mark.parametrize("target", ["8443", "localhost:9", "unix:/data/other", "unix:/data/link"])
def test_targets_must_be_granted(enclave, target):
    """A link is what it leads to."""
    with contextlib.ExitStack() as stack:
        if target.startswith("unix:"):
            stack.enter_context(serving(str(enclave.app / "data/other"), echo))
            stack.callback(os.unlink, enclave.app / "data/other")
            os.symlink("other", enclave.app / "data/link")
            stack.callback(os.unlink, enclave.app / "data/link")
        process, [line] = stack.enter_context(forwarding(enclave, "-L", f"0={target}", identity="bob"))
        with connect(line) as sock, pytest.raises(ConnectionResetError):
            sock.recv(1)
        assert "bob may not connect there" in complaint(process)


def test_what_is_granted_works_by_any_name(enclave):
    with serving(str(enclave.app / "data/granted"), echo):
        os.symlink("/data/granted", enclave.app / "tmp/alias")
        for name in ("unix:/data/granted", "unix:/tmp/alias", "unix:/tmp/../data/granted"):
            with forwarding(enclave, "-L", f"0={name}", identity="bob") as (_, [line]), connect(line) as sock:
                sock.shutdown(socket.SHUT_WR)
                assert sock.recv(1) == b""
    os.unlink(enclave.app / "data/granted")
    os.unlink(enclave.app / "tmp/alias")


def test_app_cannot_lead_out_of_its_root(enclave, short, tmp_path):
    with serving(f"{tmp_path}/s", echo):
        os.symlink(f"{tmp_path}/s", short / "s")
        with forwarding(enclave, "-L", f"0={inside_name(enclave, short / 's')}") as (process, [line]):
            with connect(line) as sock, pytest.raises(ConnectionResetError):
                sock.recv(1)
            assert "no such file" in complaint(process)
        # the framework's root is this machine's
        with forwarding(enclave, "--system", "-L", f"0=unix:{tmp_path}/s") as (_, [line]), connect(line) as sock:
            sock.shutdown(socket.SHUT_WR)
            assert sock.recv(1) == b""


def test_listener_that_is_in_the_way_is_left_alone(enclave, short):
    with serving(str(short / "s"), echo):
        done = enclave.run("forward", "-R", f"{inside_name(enclave, short / 's')}=9", CID)
        assert done.returncode == 2
        assert b"address already in use" in done.stderr
        with connect_unix(short / "s") as sock:
            sock.shutdown(socket.SHUT_WR)
            assert sock.recv(1) == b""


async def test_program_forwards_both_ways_on_one_session(enclave, short, monkeypatch):
    monkeypatch.setenv(fabric.RUNTIME_DIR_VARIABLE, enclave.environment[fabric.RUNTIME_DIR_VARIABLE])
    trust = {"pcrs": {0: PCRS[0]}, "insecure_dev_root": enclave.dev_root}
    there = f"unix:/{(short / 's').relative_to(enclave.app)}"
    with serving(("127.0.0.1", 0), echo) as target:
        async with (
            Enclave(cid=CID, identity=enclave.directory / "alice", **trust) as entered,
            entered.forward(f"{there}={target}", reverse=True) as inner,
            entered.forward(f"0={there}") as outer,
        ):
            assert inner == there.replace(":", "://")
            host, _, port = outer.removeprefix("tcp://").rpartition(":")
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(DATA)
            writer.write_eof()
            assert await reader.read() == DATA[::-1]
            writer.close()
            with pytest.raises(ConfigError):
                await entered.forward("nonsense").__aenter__()
    assert not (short / "s").exists()


async def test_no_more_connections_than_there_is_room_for(enclave, monkeypatch):
    """Those beyond wait to be accepted, and are served as others end."""
    monkeypatch.setenv(fabric.RUNTIME_DIR_VARIABLE, enclave.environment[fabric.RUNTIME_DIR_VARIABLE])
    monkeypatch.setattr(forward_client, "MAX_CONNECTIONS", 2)
    here, most, count = [], 0, threading.Lock()

    def answer(connection):
        nonlocal most
        with count:
            here.append(connection)
            most = max(most, len(here))
        connection.sendall(b"hello")
        connection.recv(1)
        with count:
            here.remove(connection)

    def enter():
        sock = socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])), timeout=WAIT_S)
        return stack.enter_context(sock)

    identity = enclave.directory / "alice"
    with serving(("127.0.0.1", 0), answer) as target, contextlib.ExitStack() as stack:
        async with (
            Enclave(cid=CID, pcrs=PCRS, identity=identity, insecure_dev_root=enclave.dev_root) as inside,
            inside.forward(f"0={target}") as address,
        ):
            callers = [enter() for _ in range(5)]
            for caller in callers[:2]:
                assert await asyncio.to_thread(caller.recv, 5) == b"hello"
            for _ in range(20):  # time enough to accept what should wait
                await inside.ping()
            for ending, waiting in zip(callers, [*callers[2:], None, None], strict=True):
                await asyncio.to_thread(ending.close)
                if waiting is not None:
                    assert await asyncio.to_thread(waiting.recv, 5) == b"hello"
    assert most == 2


async def test_arrivals_are_logged_with_the_clients_name(enclave, short, tmp_path):
    """Who has let a connection out of the enclave is known there, for each that went or did not."""
    log = enclave.directory / "listen.log"
    begun = log.stat().st_size
    with serving(("127.0.0.1", 0), echo) as target, forwarding(enclave, "-R", f"0={target}") as (_, [line]):
        with connect(line) as sock:
            sock.shutdown(socket.SHUT_WR)
            assert read_all(sock) == b""
        address = line.split()[1]
        about = []
        async with asyncio.timeout(WAIT_S):
            while len(about) < 2:  # handed over, done
                await asyncio.sleep(0.01)
                with open(log) as source:
                    source.seek(begun)
                    entries = [json.loads(text) for text in source if text.endswith("\n")]
                about = [entry for entry in entries if entry.get("listen") == address]
    assert {entry["client"] for entry in about} == {"alice"}
    assert len({entry["stream"] for entry in about}) == 1


async def test_what_the_enclave_opens_unasked_goes_nowhere():
    """An arrival at a listener that is none of ours: nothing is dialled."""

    class Session:
        accept = None

    forwarding = Forwarding(Session(), pytest.fail)
    with pytest.raises(RemoteProtocolError):
        await forwarding._take_arrival(None, Frame(Kind.OPEN, b'{"listener":1}', 0x8000))


TCP = TcpAddress


@pytest.mark.parametrize(
    ("text", "listen", "target"),
    [
        ("0=8443", TCP("127.0.0.1", 0), TCP("127.0.0.1", 8443)),
        ("1=tcp://h:2", TCP("127.0.0.1", 1), TCP("h", 2)),
        ("1:h:2", TCP("127.0.0.1", 1), TCP("h", 2)),
        ("0.0.0.0:1:127.0.0.1:2", TCP("0.0.0.0", 1), TCP("127.0.0.1", 2)),
        ("[::1]:1:[::2]:2", TCP("::1", 1), TCP("::2", 2)),
        ("0.0.0.0:1=[::1]:2", TCP("0.0.0.0", 1), TCP("::1", 2)),
        ("unix:/a=unix:///b", UnixAddress("/a"), UnixAddress("/b")),
        ("unix:///a=unix:/b=c", UnixAddress("/a"), UnixAddress("/b=c")),
    ],
)
def test_rules(text, listen, target):
    for reverse in (False, True):
        assert parse_forward(text, reverse=reverse) == Forward(listen, target, reverse)


def test_path_on_our_side_may_be_relative(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert parse_forward("unix:a=1", reverse=False).listen == UnixAddress(f"{tmp_path}/a")
    assert parse_forward("1=unix:a", reverse=True).target == UnixAddress(f"{tmp_path}/a")


@pytest.mark.parametrize(
    ("text", "reverse"),
    [
        *[
            (text, False)
            for text in (
                "",
                "8080",
                "1:2",
                "1:h:0",
                "1:h:",
                "1::2:3",
                "1=",
                "=1",
                "1=0",
                "1=h",
                "65536=1",
                "1=unix:a",
                "1=unix:",
                "1=vsock://3:1",
            )
        ],
        *[(text, True) for text in ("unix:a=1", "1=unix:", "unix:/a/=1")],
    ],
)
def test_rules_that_are_refused(text, reverse):
    with pytest.raises(ConfigError):
        parse_forward(text, reverse=reverse)
