# SPDX-License-Identifier: Apache-2.0
"""The attested way to PID 1: its messages byte by byte, and the whole of it over the fabric with the emulator's NSM."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest
import yaml
from enclavekit_attestation.binding import TlsIdentity
from enclavekit_core import fabric, tls
from enclavekit_core.errors import ConfigError, RemoteProtocolError
from enclavekit_emulator.nsm_authority import dev_root_path
from enclavekit_emulator.nsm_server import serve_nsm
from enclavekit_emulator.nsm_service import NsmService
from enclavekit_enclave_init.initctl import channel
from enclavekit_enclave_init.initctl.clients import Clients
from enclavekit_enclave_init.initctl.requests import PERMISSIONS
from enclavekit_pipeline.host.identity import generate
from hypothesis import given
from hypothesis import strategies as st

CID = 21
PATIENCE_S = 60
PCRS = {0: b"\x01" * 48, 1: b"\x02" * 48, 2: b"\x03" * 48}
MODULE = "i-0123456789abcdef-enc0123456789abcdef"
NONCE = bytes(range(32))
MESSAGES = [
    (channel.encode_hello(NONCE), channel.decode_hello, NONCE),
    (channel.encode_evidence(NONCE, b"document"), channel.decode_evidence, (NONCE, b"document")),
    (channel.encode_auth(b"certificate", b"signature"), channel.decode_auth, (b"certificate", b"signature")),
    (channel.encode_accept("alice"), channel.decode_accept, "alice"),
]


@pytest.mark.parametrize(("wire", "decode", "value"), MESSAGES)
def test_handshake_messages(wire, decode, value):
    assert decode(wire) == value
    for end in range(len(wire)):
        with pytest.raises(RemoteProtocolError):
            decode(wire[:end])
    for other, _, _ in MESSAGES:
        if other != wire:
            with pytest.raises(RemoteProtocolError):
                decode(other)
    with pytest.raises(RemoteProtocolError) as caught:
        decode(b'{"Error":{"message":"go away"}}')
    assert "go away" in str(caught.value)


@given(st.sampled_from(MESSAGES), st.data())
def test_handshake_survives_any_change(message, data):
    wire, decode, _ = message
    changed = bytearray(wire)
    for _ in range(data.draw(st.integers(0, 3))):
        changed[data.draw(st.integers(0, len(wire) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(RemoteProtocolError):
        decode(bytes(changed))


@pytest.mark.parametrize("wire", [b"", b"7", b"[" * 50_000, b'{"hello":{"version":2,"nonce":"00"}}', b"\xff"])
def test_what_is_no_hello(wire):
    with pytest.raises(RemoteProtocolError):
        channel.decode_hello(wire)


@pytest.mark.parametrize(
    "clients",
    [
        [], [{"name": "a", "allow": ["exec"], "spki_sha256": "00" * 32}],
        [{"name": "a", "control": ["fly"], "spki_sha256": "00" * 32}], [{"name": "a", "control": ["status"]}],
        [{"name": "a", "control": ["status"], "spki_sha256": "00"}],
        [{"name": "a", "control": ["status"], "certificate": "x"}],
        [{"name": "a", "control": ["status"], "certificate": "x", "spki_sha256": "00" * 32}],
        # the same key, or the same name, for two: whose permissions count must not depend on their order
        [{"name": "a", "control": ["status"], "spki_sha256": "00" * 32},
         {"name": "b", "allow": ["exec"], "spki_sha256": "00" * 32}],
        [{"name": "a", "control": ["status"], "spki_sha256": "00" * 32},
         {"name": "a", "control": ["all"], "spki_sha256": "11" * 32}],
    ],
)  # fmt: skip
def test_no_usable_list_no_listener(tmp_path, clients):
    path = tmp_path / "clients.yaml"
    path.write_text(yaml.safe_dump({"clients": clients}))
    with pytest.raises(ConfigError):
        Clients.load(str(path))
    with pytest.raises(ConfigError):
        Clients.load(str(tmp_path / "none.yaml"))


@pytest.fixture(scope="module")
def inside(tmp_path_factory):
    """PID 1's stand-in with a unit, the NSM, and the gateway in front of it, as CID 21."""
    top = tmp_path_factory.mktemp("g")
    for name in ("rt/registry", f"rt/fabric/{CID}", "rt/fabric/3", "view/registry", "units", "log", "nsm"):
        (top / name).mkdir(parents=True)
    (top / "view/fabric").symlink_to(top / "rt/fabric")
    fabric.write_record(str(top / "rt/registry/self.json"), {"cid": 3})
    fabric.write_record(str(top / f"rt/registry/{CID}.json"), {"cid": CID, "transport": "fabric"})
    fabric.write_record(str(top / "view/registry/self.json"), {"cid": CID})
    (top / "units/app.service").write_text("ExecStart = \"sh -c 'echo hello; exec sleep 1000'\"\n")
    entries = []
    for name, control in (("boss", ["all"]), ("watcher", ["status"]), ("other", None)):
        generate(name, str(top))
        entry = {"name": name, "allow": ["exec"], "certificate": (top / f"{name}.crt").read_text()}
        entries.append(entry if control is None else {**entry, "control": control})
    generate("only", str(top))
    entries.append({"name": "only", "allow": [], "control": ["status"], "certificate": (top / "only.crt").read_text()})
    generate("stranger", str(top))
    (top / "schema.json").write_text('{"LEVEL": {"type": "string"}}')
    (top / "clients.yaml").write_text(yaml.safe_dump({"clients": entries}))
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(top / "nsm.sock"))
    listener.listen()
    server = serve_nsm(
        listener, NsmService.for_enclave(PCRS, "i-0123456789abcdef-enc0123456789abcdef", str(top / "nsm"))
    )
    run = [sys.executable, "-c", "import sys; from enclavekit_enclave_init.cli import main; sys.exit(main())"]
    units = ["--insecure-not-pid1", "--service-dir", top / "units", "--log-dir", top / "log"]
    gateway = [sys.executable, "-m", "enclavekit_enclave_init.initctl.gateway", "--clients", top / "clients.yaml"]
    environment = {**os.environ, fabric.RUNTIME_DIR_VARIABLE: str(top / "view")}
    with open(top / "output", "wb") as output:
        processes = [
            subprocess.Popen([*run, *units, "--control-socket", top / "init.sock"], stderr=output),
            subprocess.Popen(
                [
                    *gateway,
                    "--socket",
                    top / "init.sock",
                    "--nsm",
                    top / "nsm.sock",
                    "--runtime-schema",
                    top / "schema.json",
                    "--runtime-values",
                    top / "values.json",
                ],
                stderr=output,
                env=environment,
            ),
        ]
    try:
        deadline = time.monotonic() + PATIENCE_S
        while not (top / f"rt/fabric/{CID}/9001.sock").exists() or not (top / "init.sock").exists():
            assert time.monotonic() < deadline, (top / "output").read_text()
            time.sleep(0.02)

        def initctl(*words, identity="boss", pcr0=PCRS[0], status=0, cid=CID):
            flags = [
                *("--cid", str(cid), "--pcr", f"0={pcr0.hex()}", "--identity", str(top / identity)),
                *("--insecure-dev-root", dev_root_path(str(top / "nsm"))),
            ]
            argv = [
                sys.executable,
                "-c",
                "import sys; from enclavekit_enclave_init.initctl.cli import main; sys.exit(main())",
            ]
            done = subprocess.run(
                [*argv, *flags, *words],
                env={**os.environ, fabric.RUNTIME_DIR_VARIABLE: str(top / "rt")},
                capture_output=True,
                text=True,
                timeout=PATIENCE_S,
            )
            assert done.returncode == status, f"{done.stdout}{done.stderr}\n{(top / 'output').read_text()}"
            return done.stdout + done.stderr

        yield SimpleNamespace(initctl=initctl, top=top)
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(PATIENCE_S)
        server.close()


def test_who_is_granted_it_controls_from_outside(inside):
    assert "pong" in inside.initctl("ping")
    assert "running" in inside.initctl("status", "app", identity="watcher")
    assert ": hello" in inside.initctl("logs", "app")
    inside.initctl("restart", "app")
    # PID 1's own log has the name that the list has for the caller
    assert "ServiceRestart name=app (asked by boss by way of" in inside.initctl("logs", "enclave-init")


def test_who_is_not_granted_it_does_not(inside):
    assert "may not" in inside.initctl("restart", "app", identity="watcher", status=1)
    assert "may not" in inside.initctl("logs", identity="watcher", status=1)
    for identity in ("other", "stranger"):
        assert "nobody in the enclave's list" in inside.initctl("ping", identity=identity, status=3)


def test_who_is_revoked_does_not_either(inside):
    """As with pipeline: a list that is announced and has not come, or is malformed, keeps everybody out."""
    schema, values = inside.top / "schema.json", inside.top / "values.json"
    before = schema.read_text()
    schema.write_text('{"PIPELINE_REVOKED": {"type": "string"}}')
    try:
        assert "has not come yet" in inside.initctl("ping", status=3)
        values.write_text('{"PIPELINE_REVOKED": "watcher"}')
        assert "pong" in inside.initctl("ping")
        assert "watcher is revoked" in inside.initctl("ping", identity="watcher", status=3)
        values.write_text('{"PIPELINE_REVOKED": 7}')
        assert "malformed" in inside.initctl("ping", status=3)
    finally:
        schema.write_text(before)
        values.unlink(missing_ok=True)


def test_who_is_there_for_control_only_is_let_in_here_and_nowhere_else(inside):
    from enclavekit_pipeline.enclave.clients import Clients as PipelineClients

    assert "pong" in inside.initctl("ping", identity="only")
    assert PipelineClients.load(str(inside.top / "clients.yaml"))


def test_an_enclave_that_is_another_hears_nothing(inside):
    def pid():  # warnings follow what was asked for
        return json.JSONDecoder().raw_decode(inside.initctl("status", "app", "--json"))[0]["status"]["pid"]

    before = pid()
    assert "PCR0" in inside.initctl("restart", "app", pcr0=b"\x09" * 48, status=6)
    assert pid() == before


def test_parent_in_the_middle_is_found_out(inside):
    """It ends TLS itself and passes the real enclave's evidence on: that binds another key than the one it has."""
    rt = inside.top / "rt"
    (rt / "fabric/22").mkdir()
    fabric.write_record(str(rt / "registry/22.json"), {"cid": 22, "transport": "fabric"})
    identity, passed = TlsIdentity.generate("initctl"), []

    def relay(listener):
        sock, _ = listener.accept()
        there = socket.socket(socket.AF_UNIX)
        there.connect(str(rt / f"fabric/{CID}/9001.sock"))
        with (
            tls.server_context(identity.certificate_pem, identity.key_pem).wrap_socket(sock, server_side=True) as ours,
            tls.attested_client_context().wrap_socket(there, server_hostname="enclave") as theirs,
            contextlib.suppress(OSError),
        ):
            for source, sink in ((ours, theirs), (theirs, ours)) * 4:
                passed.append(source.recv(65536))
                if not passed[-1]:
                    return
                sink.sendall(passed[-1])

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(rt / "fabric/22/9001.sock"))
        listener.listen()
        thread = threading.Thread(target=relay, args=(listener,), daemon=True)
        thread.start()
        assert "another TLS key" in inside.initctl("restart", "app", cid=22, status=6)
        thread.join(PATIENCE_S)
    # a hello, the evidence, and the end: neither who calls nor what was asked
    assert passed[0].count(b"hello") == 1 and b"evidence" in passed[1] and not any(passed[2:])


def test_callers_do_not_write_the_envelope(inside):
    assert set(PERMISSIONS) and "envelope" in _ask_with_envelope(inside)


def _ask_with_envelope(inside):
    from enclavekit_core.address import VsockAddress
    from enclavekit_enclave_init.initctl.framing import AnswerDecoder, encode_frame
    from enclavekit_enclave_init.initctl.remote import make_demands, open_attested

    demands = make_demands(
        eif=None, policy=None, pcrs=[f"0={PCRS[0].hex()}"], identity=str(inside.top / "watcher"),
        insecure_dev_root=dev_root_path(str(inside.top / "nsm")), allow_debug=False, environment={},
    )  # fmt: skip
    before = os.environ.get(fabric.RUNTIME_DIR_VARIABLE)
    os.environ[fabric.RUNTIME_DIR_VARIABLE] = str(inside.top / "rt")
    try:
        with open_attested(VsockAddress(CID, 9001), demands, PATIENCE_S) as tls:
            tls.sendall(encode_frame(b'{"request":"Ping","client":"boss"}'))
            decoder, answers = AnswerDecoder(), []
            while not answers:
                answers = decoder.feed(tls.recv(65536))
            return answers[0].decode()
    finally:
        if before is None:
            del os.environ[fabric.RUNTIME_DIR_VARIABLE]
        else:
            os.environ[fabric.RUNTIME_DIR_VARIABLE] = before
