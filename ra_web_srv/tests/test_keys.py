# SPDX-License-Identifier: Apache-2.0
"""Keys are made in the enclave's memory and stay there: nothing that the server writes or says holds them."""

import base64
import json
import os
import re
import subprocess
import sys

import pytest

from .conftest import Server

PROGRAM = """
import atexit, json, os, sys
from enclavekit_attestation.binding import TlsIdentity
from enclavekit_ra_web_srv import cli, vrf_key
made = []
generate, make_key = TlsIdentity.generate, vrf_key._make_key
def note_identity(name):
    identity = generate(name)
    made.append(identity.key_pem)
    return identity
def note_key(suite):
    found = make_key(suite)
    made.append(found[0])
    return found
TlsIdentity.generate, vrf_key._make_key = note_identity, note_key
handle = int(sys.argv.pop(1))
atexit.register(lambda: os.write(handle, json.dumps([key.hex() for key in made]).encode()))
sys.exit(cli.main(sys.argv[1:]))
"""


def spellings(key):
    """A key as it might be written: raw, hex, base64, as PEM or as the number in it."""
    forms = {key, key.hex().encode(), key.hex().upper().encode(), base64.b64encode(key)}
    if key.startswith(b"-----BEGIN"):
        from cryptography.hazmat.primitives import serialization

        parsed = serialization.load_pem_private_key(key, None)
        number = parsed.private_numbers().private_value
        body = b"".join(key.splitlines()[1:-1])
        forms |= {body[20:60], str(number).encode(), *spellings(number.to_bytes(32, "big"))}
    return forms


@pytest.mark.parametrize("suite", ["ECVRF-EDWARDS25519-SHA512-TAI", "ECVRF-P256-SHA256-TAI"])
def test_no_key_in_any_output_file_or_answer(nsm, data, tmp_path, suite):
    (data / "f").write_bytes(b"x")
    reading, writing = os.pipe()
    work = tmp_path / "work"
    work.mkdir()
    argv = [sys.executable, "-c", PROGRAM, str(writing), "--print-address", "--listen", "tcp://127.0.0.1:0"]
    argv += ["--no-bus", "--nsm", nsm.path, "--roots", str(data), "--vrf-cipher-suite", suite]
    environment = {**os.environ, "ENCLAVEKIT_LOG": "debug", "PYTHONASYNCIODEBUG": "1", "TMPDIR": str(work)}
    with open(tmp_path / "log", "wb") as log:
        process = subprocess.Popen(
            argv, stdout=subprocess.PIPE, stderr=log, cwd=work, env=environment, pass_fds=[writing], text=True
        )
    os.close(writing)
    server = Server.of_process(process)
    said = []
    document = json.loads(server.request("GET", "/openapi.json").body)
    server.generate_and_wait(str(data))
    for route, methods in document["paths"].items():
        target = route.replace("{job}", "x") + f"?path={data}/f&nonce=00"
        answers = [
            server.request("GET", target),
            server.request("POST", target, b"{", {"Content-Type": "application/json"}),
        ]
        assert set(methods) <= {"get", "post"}
        said += [answer.body + str(answer.headers).encode() for answer in answers]
    said += [server.request("GET", "/").body, server.get("/nothing", path="x").body]
    said.append(server.get("/health").certificate)
    assert server.stop() == 0
    with os.fdopen(reading, "rb") as notes:
        keys = [bytes.fromhex(key) for key in json.loads(notes.read())]
    assert len(keys) == 2
    written = [path.read_bytes() for path in [*work.rglob("*"), *data.rglob("*"), tmp_path / "log"] if path.is_file()]
    everything = b"\n".join([*said, *written])
    assert re.search(rb'"serving"|serving', everything), "the log is not among what was searched"
    for key in keys:
        for form in spellings(key):
            assert form not in everything
    assert b"PRIVATE KEY" not in everything


def test_keys_are_of_this_start_only(start_server):
    answers = []
    for _ in range(2):
        server = start_server("--no-bus")
        answers.append(server.get("/attestation", nonce="00").json)
        server.stop()
    for name in ("tls_spki_sha256", "vrf_public_key"):
        assert answers[0][name] != answers[1][name]
