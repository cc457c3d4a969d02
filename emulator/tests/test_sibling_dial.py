# SPDX-License-Identifier: Apache-2.0
"""Connecting on behalf of an enclave: by its CID, never by a link, and told apart from the parent."""

import asyncio
import os
import socket
import threading

import pytest
from enclavekit_core import fabric
from enclavekit_core.address import VsockAddress
from enclavekit_core.errors import TransportError
from enclavekit_core.peers import SIBLING_NAME
from enclavekit_core.streams import Listener, connect
from enclavekit_emulator.parent_ports import listen_unix
from enclavekit_emulator.sibling_dial import dial, read_answer
from enclavekit_emulator.sibling_switch import MAX_QUESTIONS, SiblingSwitch, parse_question

SOURCE, TARGET, MACHINE, PORT = 16, 17, 18, 7000


@pytest.fixture
def runtime(tmp_path_factory, monkeypatch):
    """A host with an enclave of the process machine and a virtual machine, of which there are the sockets only."""
    # short: a Unix socket's path has 107 bytes
    monkeypatch.setenv(fabric.RUNTIME_DIR_VARIABLE, str(tmp_path_factory.mktemp("r")))
    top = fabric.ensure_runtime_dir()
    for cid in (SOURCE, TARGET):
        os.makedirs(f"{top}/fabric/{cid}/parent")
    fabric.write_record(f"{top}/registry/{TARGET}.json", {"cid": TARGET, "transport": "fabric"})
    path = f"{top}/fabric/vm.sock"
    fabric.write_record(f"{top}/registry/{MACHINE}.json", {"cid": MACHINE, "transport": "hybrid", "path": path})
    return top


def listen(path):
    return listen_unix(os.path.dirname(path), os.path.basename(path), 0o600, backlog=128)


def test_a_process_enclave_sees_who_calls(runtime):
    with listen(f"{runtime}/fabric/{TARGET}/{PORT}.sock") as listener:
        dialled = dial(SOURCE, TARGET, PORT)
        sock, _ = listener.accept()
        assert not dialled.is_asked
        assert SIBLING_NAME.fullmatch(sock.getpeername())[1] == b"%d" % SOURCE
        dialled.sock.send(b"hello")
        assert sock.recv(10) == b"hello"


@pytest.mark.parametrize(("reply", "accepted"), [(b"OK 7000\nfirst", True), (b"no\n", False), (b"", False)])
def test_a_virtual_machine_is_asked_and_its_stream_keeps_every_byte(runtime, reply, accepted):
    with listen(f"{runtime}/fabric/vm.sock") as listener:
        dialled = dial(SOURCE, MACHINE, PORT)
        sock, _ = listener.accept()
        assert dialled.is_asked and sock.recv(100) == b"CONNECT 7000\n"
        sock.sendall(reply)
        sock.close()
        assert read_answer(dialled.sock) is accepted
        if accepted:
            assert dialled.sock.recv(100) == b"first"


def test_the_parents_private_port_goes_first(runtime):
    with (
        listen(f"{runtime}/fabric/3/{PORT}.sock") as shared,
        listen(f"{runtime}/fabric/{SOURCE}/parent/{PORT}.sock") as own,
    ):
        for cid in (3, 2):
            dial(SOURCE, cid, PORT).sock.close()
            own.setblocking(False), shared.setblocking(False)
            own.accept()
            with pytest.raises(BlockingIOError):
                shared.accept()


@pytest.mark.parametrize("cid", [0, 1, SOURCE, TARGET, 99, 2**32 - 1, 2**64 - 1])
def test_nobody_is_there(runtime, cid):
    with listen(f"{runtime}/fabric/3/{PORT}.sock"), pytest.raises(OSError):
        dial(SOURCE, cid, PORT)


def test_a_link_that_an_enclave_has_put_there_is_not_followed(runtime):
    os.symlink(f"{runtime}/fabric/secret.sock", f"{runtime}/fabric/{TARGET}/{PORT}.sock")
    os.mkfifo(f"{runtime}/fabric/{TARGET}/1.sock")
    with listen(f"{runtime}/fabric/secret.sock") as listener:
        for port in (PORT, 1):
            with pytest.raises(OSError):
                dial(SOURCE, TARGET, port)
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()


@pytest.mark.parametrize(
    ("line", "question"),
    [(b"CONNECT 17 7000\n", (17, 7000)), (b"CONNECT 4294967295 4294967295\n", (2**32 - 1, 2**32 - 1)),
     (b"CONNECT 17\n", None), (b"CONNECT -1 2\n", None), (b"CONNECT 4294967296 1\n", None), (b"connect 1 1\n", None),
     (b"", None), (b"CONNECT 1 1 1\n", None), ("CONNECT ² 1\n".encode(), None)],
)  # fmt: skip
def test_questions(line, question):
    assert parse_question(line) == question


@pytest.fixture
def switch(runtime, monkeypatch):
    """The parent's side for enclave SOURCE, in a loop of its own; afterwards this process is that enclave."""
    loop, ready = asyncio.new_event_loop(), threading.Event()
    made = SiblingSwitch(SOURCE)
    listener = listen(f"{runtime}/fabric/{SOURCE}/parent/{fabric.SIBLINGS_SOCKET}")

    def run():
        asyncio.set_event_loop(loop)
        loop.call_soon(made.start, listener)
        loop.call_soon(ready.set)
        loop.run_forever()
        loop.run_until_complete(asyncio.gather(*made._tasks, return_exceptions=True))
        loop.close()

    thread = threading.Thread(target=run)
    thread.start()
    assert ready.wait(60)
    yield made
    loop.call_soon_threadsafe(made.close)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()


def inside(monkeypatch, factory, runtime):
    """From here this process sees what enclave SOURCE sees: itself, and its own directory."""
    view = factory.mktemp("v")
    (view / "registry").mkdir()
    (view / "fabric").mkdir()
    (view / "registry/self.json").write_text(f'{{"cid": {SOURCE}}}')
    (view / "fabric" / str(SOURCE)).symlink_to(f"{runtime}/fabric/{SOURCE}")
    real = fabric.runtime_dir()
    # the dialling thread goes on seeing the host's directory
    main = threading.main_thread()
    monkeypatch.setattr(fabric, "runtime_dir", lambda: str(view) if threading.current_thread() is main else real)


def test_an_enclave_gets_the_connected_socket(runtime, switch, monkeypatch, tmp_path_factory):
    with listen(f"{runtime}/fabric/{TARGET}/{PORT}.sock") as listener:
        inside(monkeypatch, tmp_path_factory, runtime)
        with connect(VsockAddress(TARGET, PORT)) as sock:
            theirs, _ = listener.accept()
            assert sock.getblocking() and not os.get_inheritable(sock.fileno())
            sock.sendall(b"ping")
            assert theirs.recv(10) == b"ping"
            theirs.close()
            assert sock.recv(1) == b""
        with pytest.raises(TransportError):
            connect(VsockAddress(TARGET, PORT + 1))


def test_nonsense_and_crowds_cost_the_one_that_asks_only(runtime, switch, monkeypatch, tmp_path_factory, wait_until):
    path = f"{runtime}/fabric/{SOURCE}/parent/{fabric.SIBLINGS_SOCKET}"
    crowd = []
    for number in range(2 * MAX_QUESTIONS):
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(60)
        sock.connect(path)
        crowd.append(sock)
        if number < MAX_QUESTIONS:
            sock.send(b"CONNECT")
    assert crowd[-1].recv(1) == b""  # one too many: nobody waits for it
    for sock in crowd:
        sock.close()
    with listen(f"{runtime}/fabric/{TARGET}/{PORT}.sock"):
        inside(monkeypatch, tmp_path_factory, runtime)
        for junk in (b"\n", b"x" * 1000):
            with socket.socket(socket.AF_UNIX) as sock:
                sock.settimeout(60)
                sock.connect(path)
                sock.sendall(junk)
                try:
                    assert sock.recv(1) == b""
                except ConnectionResetError:
                    pass

        def is_answered():  # as soon as the crowd's end has been noticed
            try:
                connect(VsockAddress(TARGET, PORT)).close()
            except TransportError:
                return False
            return True

        wait_until(is_answered, "an answer after the crowd")


def test_an_enclave_is_not_taken_for_its_parent(monkeypatch):
    """Seen from inside, all of the host has pid 0: the name that the host gave the socket makes the difference."""
    from enclavekit_core import peers

    monkeypatch.setattr(fabric, "local_cid", lambda: TARGET)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("")
        listener.listen()
        for name, cid in ((peers.sibling_name(SOURCE), SOURCE), (None, 3), (b"\0enclavekit-vsock:9", 3)):
            with socket.socket(socket.AF_UNIX) as client:
                if name is not None:
                    client.bind(name)
                client.connect(listener.getsockname())
                sock, _ = listener.accept()
                with sock:
                    assert peers._cid_of_pid(0, sock) == cid
                    assert peers._cid_of_pid(4, sock) == TARGET


def test_the_listener_of_a_host_that_is_parent(runtime):
    with Listener(VsockAddress(3, PORT)) as listener:
        dialled = dial(SOURCE, 3, PORT)
        sock, peer = listener.accept()
        assert peer.cid == 3  # this very process is no enclave's carrier
        fabric.write_record(f"{runtime}/registry/{SOURCE}.json", {"cid": SOURCE, "carrier_pid": os.getpid()})
        again = dial(SOURCE, 3, PORT)
        other, peer = listener.accept()
        assert peer.cid == SOURCE
        for each in (dialled.sock, sock, again.sock, other):
            each.close()
