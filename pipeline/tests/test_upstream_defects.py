# SPDX-License-Identifier: Apache-2.0
"""What is wrong with the Rust framework's pipeline is not so here: a page names tests for each, and they exist. Those
that had no place elsewhere are here.
"""

import contextlib
import dataclasses
import json
import os
import socket
import ssl
import subprocess
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from enclavekit_core import fabric
from enclavekit_core.address import VsockAddress
from enclavekit_core.errors import TransportError
from enclavekit_pipeline.host import client, legacy_client

from .conftest import BIN, CID, PCRS, grant, listening

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/reference/pipeline-defects.md"
DEFECTS = 22
TAPPED_CID, OWN_CID = 31, 32
LAST_PAUSE_S = 0.5  # between tries
WORD = "Kohlrabi-4711"  # what is looked for where it must not be


def test_each_defect_has_tests_that_exist(check_defects_page):
    check_defects_page(PAGE, DEFECTS, Path(__file__).parent)


@contextlib.contextmanager
def tapped(inside):
    """Connect TAPPED_CID to the enclave through a relay; yield what has passed."""
    host = Path(inside.environment[fabric.RUNTIME_DIR_VARIABLE])
    (host / f"fabric/{TAPPED_CID}").mkdir()
    fabric.write_record(str(host / f"registry/{TAPPED_CID}.json"), {"cid": TAPPED_CID, "transport": "fabric"})
    seen = bytearray()

    def pump(source, sink):
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                seen.extend(data)
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)

    def serve():
        with contextlib.suppress(OSError):
            while True:
                near, _ = listener.accept()
                far = socket.socket(socket.AF_UNIX)
                far.connect(str(host / f"fabric/{CID}/53000.sock"))
                for ends in ((near, far), (far, near)):
                    threading.Thread(target=pump, args=ends, daemon=True).start()

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(host / f"fabric/{TAPPED_CID}/53000.sock"))
        listener.listen()
        threading.Thread(target=serve, daemon=True).start()
        yield seen
        listener.shutdown(socket.SHUT_RDWR)


def test_nothing_can_be_read_on_the_way(enclave, tmp_path):
    (tmp_path / WORD).write_text(WORD * 1000)
    command = ["sh", "-c", f"cat; echo {WORD}"]
    assert enclave.run("ping", "-c", 1, CID).returncode == 0  # it listens
    with tapped(enclave) as seen:
        done = enclave.run("exec", "-i", "--system", TAPPED_CID, "--", *command, stdin=WORD.encode())
        assert done.stdout.decode() == WORD + WORD + "\n"
        assert enclave.run("cp", tmp_path / WORD, f"{TAPPED_CID}:/data/{WORD}").returncode == 0
    assert len(seen) > 1000 * len(WORD)
    for form in (WORD.encode(), WORD.encode("utf-16-le"), b"alice", PCRS[0]):
        assert form not in seen


def test_older_tls_is_refused(enclave):
    assert enclave.run("ping", "-c", 1, CID).returncode == 0  # it listens
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    path = Path(enclave.environment[fabric.RUNTIME_DIR_VARIABLE]) / f"fabric/{CID}/53000.sock"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(path))
        with pytest.raises((ssl.SSLError, ConnectionError)):
            context.wrap_socket(sock)


def test_secrets_are_in_no_log_and_decisions_are_in_both(inside, tmp_path):
    """Arguments, environment, input and output of a command, and content of files; of denied requests, too."""
    (tmp_path / "file").write_text(WORD)
    environment = {**inside.environment, "ENCLAVEKIT_LOG": "debug"}
    script = ["sh", "-c", f"cat >&2; : {WORD}"]
    requests = [
        ("alice", ["exec", "-i", "-e", f"TOKEN={WORD}", "--system", OWN_CID, "--", *script]),
        ("alice", ["cp", tmp_path / "file", f"{OWN_CID}:/data/file"]),
        ("alice", ["exec", "--system", OWN_CID, "--", "no-such-program", WORD]),
        ("bob", ["exec", OWN_CID, "--", "sh", WORD]),
    ]
    told = b""
    clients = [grant(inside, "alice", system=True), grant(inside, "bob", commands=[["ls"]])]
    with listening(dataclasses.replace(inside, directory=tmp_path), clients, cid=OWN_CID):
        for identity, (verb, *words) in requests:
            argv = [str(word) for word in (BIN / "pipeline", verb, *inside.flags(identity), *words)]
            done = subprocess.run(argv, env=environment, input=f"{WORD}\n".encode(), capture_output=True, timeout=60)
            told += b"".join(line for line in done.stderr.splitlines(True) if line != f"{WORD}\n".encode())
    lines = (tmp_path / "listen.log").read_bytes().splitlines()
    assert not [line for line in lines if WORD.encode() in line]
    assert WORD.encode() not in told
    entries = [json.loads(line) for line in lines if line.startswith(b"{")]
    assert {(entry["client"], entry.get("target")) for entry in entries if entry.get("verb") == "exec"} == {
        ("alice", "sh"),
        ("alice", "no-such-program"),
        ("bob", "sh"),
    }
    assert b"alice" in told  # what the client decided on is in its own


def test_characters_are_never_cut(enclave, tmp_path):
    """Three bytes each: no size of a buffer that is a power of two ends with one of them every time."""
    text = "x" + "€" * 1_000_000
    (tmp_path / "text").write_text(text)
    done = enclave.run("exec", "--system", CID, "--", "cat", tmp_path / "text")
    assert done.stdout.decode() == text


def test_file_that_claims_to_be_empty_is_read_to_its_end(enclave):
    done = enclave.run("cp", "--system", f"{CID}:/proc/version", "-")
    assert done.stdout == Path("/proc/version").read_bytes()


def test_buffer_sizes_of_zero_change_nothing(enclave, tmp_path):
    keys = ("buf_max_len_file_io", "buf_max_len_file_path", "buf_max_len_cmd", "buf_max_len_cmd_io", "backlog")
    sizes = ", ".join(f"{key}: 0" for key in keys)
    (tmp_path / "config.yaml").write_text(f"cid: {CID}\nport: 53000\nbuffers: {{{sizes}}}\n")
    (tmp_path / "file").write_bytes(os.urandom(100_000))
    flags = [str(word) for word in enclave.flags()]
    words = ["-c", tmp_path / "config.yaml", "cp", *flags, tmp_path / "file", f"{CID}:/data/zero"]
    argv = [BIN / "pipeline", *map(str, words)]
    done = subprocess.run(argv, env=enclave.environment, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert (enclave.app / "data/zero").read_bytes() == (tmp_path / "file").read_bytes()


class Clock:
    """Stands still but for who sleeps and who tries: nobody waits in earnest."""

    def __init__(self, each_try_s):
        self.now, self.tries, self.pauses, self._each_try_s = 1000.0, [], [], each_try_s

    def monotonic(self):
        return self.now

    def sleep(self, pause_s):
        assert self.now < 10_000, "it is tried for ever"
        self.pauses.append(pause_s)
        self.now += pause_s

    async def sleep_async(self, pause_s):
        self.sleep(pause_s)

    def refuse(self, address, timeout_s):
        self.tries.append(self.now)
        self.now += min(self._each_try_s, timeout_s)
        raise TransportError("connect to", address, refusal := ConnectionRefusedError()) from refusal

    async def refuse_async(self, address, timeout_s):
        self.refuse(address, timeout_s)


@pytest.mark.parametrize("timeout_s", [0.0, 0.1, 10.0, 120.0])
@pytest.mark.parametrize("each_try_s", [0.0, 3.0])
@pytest.mark.parametrize("ours", [True, False], ids=["ours", "theirs"])
async def test_connecting_is_tried_for_as_long_as_asked(monkeypatch, timeout_s, each_try_s, ours):
    clock = Clock(each_try_s)
    module = client if ours else legacy_client
    monkeypatch.setattr(module, "time", clock)
    address = VsockAddress(99, 53000)
    if ours:
        monkeypatch.setattr(module, "connect_once", clock.refuse_async)
        monkeypatch.setattr(module, "asyncio", SimpleNamespace(sleep=clock.sleep_async))
        with pytest.raises(TransportError):
            await module.connect(module.Target(address, None, None, timeout_s))
    else:
        monkeypatch.setattr(module, "connect", clock.refuse)
        with pytest.raises(TransportError):
            module.LegacyClient(address, timeout_s)
    end_s = clock.tries[-1] - 1000.0
    assert end_s <= timeout_s
    # as far as there was time for one more, and the end of the last is the end
    assert clock.now <= clock.tries[-1] + each_try_s
    assert timeout_s - end_s <= 2 * LAST_PAUSE_S + each_try_s
    assert all(pause <= LAST_PAUSE_S for pause in clock.pauses)  # an enclave that has booted is not left waiting
