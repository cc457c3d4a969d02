# SPDX-License-Identifier: Apache-2.0
"""The unit `runtime-config` as a process of its own, with the emulator's NSM and a parent on the fabric."""

import json
import os
import socket
import struct
import subprocess
import sys
import time

import pytest
from enclavekit_core.errors import ConfigError
from enclavekit_core.runtime_config import PORT, expected_pcr16
from enclavekit_emulator.nsm_server import serve_nsm
from enclavekit_emulator.nsm_service import NsmService
from enclavekit_enclave_init.runtime_config import parse_choice, read_schema
from enclavekit_nsm.client import NsmClient

PATIENCE_S = 60.0
SCHEMA = {"LEVEL": {"type": "string", "enum": ["debug", "info"]}, "WORKERS": {"type": "integer", "default": 2}}


class Unit:
    def __init__(self, base):
        self.base, self.ready = base, base / f"rt/fabric/3/{PORT}.sock"
        for name in ("rt/registry", "rt/fabric/3"):
            (base / name).mkdir(parents=True)
        (base / "rt/registry/self.json").write_text('{"cid": 3}')  # this side is the parent: so is who connects
        (base / "schema.json").write_text(json.dumps(SCHEMA))
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(base / "nsm.sock"))
        listener.listen(4)
        self.nsm_server = serve_nsm(listener, NsmService.for_enclave({0: b"\1" * 48}, "i-1-enc1", str(base), ()))
        self.process = None

    def start(self):
        files = {"schema": "schema.json", "values": "out/values.json", "environment": "out/values.env"}
        flags = [f"--{name}={self.base / file}" for name, file in files.items()]
        env = os.environ | {
            "ENCLAVEKIT_RUNTIME_DIR": str(self.base / "rt"),
            "ENCLAVEKIT_TRANSPORT": "fabric",
            "ENCLAVEKIT_NSM": str(self.base / "nsm.sock"),
        }
        argv = [sys.executable, "-I", "-m", "enclavekit_enclave_init.runtime_config", *flags]
        self.process = subprocess.Popen(argv, env=env, stderr=subprocess.PIPE, text=True)
        return self

    def connect(self):
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            sock = socket.socket(socket.AF_UNIX)
            try:
                sock.connect(str(self.ready))
            except OSError:
                sock.close()
                assert self.process.poll() is None, self.process.stderr.read()
                os.sched_yield()
                continue
            sock.settimeout(PATIENCE_S)
            return sock
        raise AssertionError("it never listened")

    def offer(self, message):
        with self.connect() as sock:
            sock.sendall(struct.pack(">I", len(message)) + message)
            size = struct.unpack(">I", sock.recv(4, socket.MSG_WAITALL))[0]
            return json.loads(sock.recv(size, socket.MSG_WAITALL))

    def nsm(self):
        return NsmClient.open(str(self.base / "nsm.sock"))

    def close(self):
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process.stderr.close()
        self.nsm_server.close()


@pytest.fixture
def unit(tmp_path_factory):
    made = Unit(tmp_path_factory.mktemp("u"))  # not tmp_path: socket paths would be too long
    yield made
    made.close()


def test_the_first_valid_choice_is_measured_locked_and_handed_on(unit):
    unit.start()
    assert "LEVEL" in unit.offer(b"{}")["error"]
    assert "JSON" in unit.offer(b"{")["error"]
    assert "twice" in unit.offer(b'{"LEVEL":"info","LEVEL":"debug"}')["error"]
    expected = expected_pcr16({"LEVEL": "info", "WORKERS": 2})
    assert unit.offer(b'{"LEVEL":"info"}') == {"pcr16": expected.hex()}
    assert unit.process.wait(PATIENCE_S) == 0
    assert (unit.base / "out/values.json").read_text() == '{"LEVEL":"info","WORKERS":2}'
    assert (unit.base / "out/values.env").read_text() == "LEVEL=info\nWORKERS=2\n"
    with unit.nsm() as nsm:
        pcr = nsm.describe_pcr(16)
        assert pcr.lock and pcr.data == expected
    assert not unit.ready.exists()


def test_one_that_sends_too_much_or_too_little_does_not_stop_the_next(unit):
    unit.start()
    with unit.connect() as sock:
        sock.sendall(struct.pack(">I", 0xFFFFFFFF))
        assert sock.recv(4)
    with unit.connect() as sock:
        sock.sendall(struct.pack(">I", 100) + b"{")
        sock.shutdown(socket.SHUT_WR)
        assert sock.recv(4)
    assert "pcr16" in unit.offer(b'{"LEVEL":"debug","WORKERS":9}')
    assert unit.process.wait(PATIENCE_S) == 0


def test_a_used_pcr16_ends_it_before_anything_is_written(unit):
    with unit.nsm() as nsm:
        nsm.extend_pcr(16, b"somebody else")
    unit.start()
    assert "PCR16" in unit.offer(b'{"LEVEL":"info"}')["error"]
    assert unit.process.wait(PATIENCE_S) == 2
    assert not (unit.base / "out").exists()


def test_a_schema_that_is_none_stops_it_at_once(unit):
    (unit.base / "schema.json").write_text('{"A": {"type": "float"}}')
    assert unit.start().process.wait(PATIENCE_S) == 2
    with pytest.raises(ConfigError):
        read_schema(str(unit.base / "schema.json"))


@pytest.mark.parametrize("message", [b"[" * 100_000, b"\xff", b"null", b"1"])
def test_messages_that_are_no_choice(message):
    with pytest.raises(ConfigError):
        parse_choice(message, {})
