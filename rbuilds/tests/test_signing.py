# SPDX-License-Identifier: Apache-2.0
"""Signed builds: PCR8, the same bytes from the same key, and keys that cannot be used."""

from __future__ import annotations

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, utils
from enclavekit_eif.measure import measure
from enclavekit_eif.reader import read_eif
from enclavekit_eif.signature import read_signature, verify_signature
from enclavekit_rbuilds.cli import main


@pytest.fixture
def build(app: Path, framework: Path, kernel: Path, certificate, tmp_path: Path, capsys):
    certificate("signer")
    certificate("other")

    def run(output: str, *words: object, expect: int = 0):
        common = ["--rootfs", app, "--framework-rootfs", framework, "--kernel", kernel, "--cmd", "serve"]
        argv = ["build", "--quiet", *common, "--name", "app", "--output", tmp_path / output, "--json", *words]
        assert main([str(word) for word in argv]) == expect
        printed = capsys.readouterr()
        return json.loads(printed.out) if expect == 0 else printed.err.splitlines()[-1]

    return run


@pytest.fixture
def signed(tmp_path: Path) -> tuple[object, ...]:
    return "--signing-key", tmp_path / "signer.key", "--signing-certificate", tmp_path / "signer.crt"


def test_a_signed_image_proves_its_signer_and_measures_as_the_unsigned_one(build, signed, tmp_path: Path) -> None:
    plain = build("plain.eif")
    result = build("signed.eif", *signed)
    with read_eif(tmp_path / "signed.eif") as eif:
        measured = measure(eif)
        assert measured.crc_ok
        verify_signature(read_signature(eif), measured.pcr0)
        assert measured.to_json() == result["measurements"]
    assert result["measurements"] == plain["measurements"] | {"PCR8": result["measurements"]["PCR8"]}
    assert [step["name"] for step in result["steps"]][-2:] == ["image", "signature"]


def test_signing_again_gives_the_same_bytes_and_is_reused(build, signed, tmp_path: Path) -> None:
    assert build("1.eif", *signed)["steps"][-1]["state"] == "made"
    assert [step["state"] for step in build("1.eif", *signed)["steps"]][-2:] == ["reused", "reused"]
    build("2.eif", *signed)
    assert (tmp_path / "1.eif").read_bytes() == (tmp_path / "2.eif").read_bytes()
    assert "PCR8" not in build("1.eif")["measurements"]


def test_another_signer_signs_anew(build, signed, tmp_path: Path) -> None:
    first = build("app.eif", *signed)
    other = build("app.eif", "--signing-key", tmp_path / "other.key", "--signing-certificate", tmp_path / "other.crt")
    assert [step["state"] for step in other["steps"]][-1] == "made"
    assert other["measurements"]["PCR8"] != first["measurements"]["PCR8"]


@pytest.mark.parametrize(
    ("key", "certificate_file", "reason"),
    [
        ("other.key", "signer.crt", "another key"),
        ("none.key", "signer.crt", "none.key"),
        ("signer.key", "none.crt", "none.crt"),
        ("signer.crt", "signer.crt", "signer.crt"),
        ("signer.key", "signer.key", "certificate"),
    ],
)
def test_keys_that_cannot_sign_stop_the_build_at_once(build, tmp_path: Path, key, certificate_file, reason) -> None:
    words = ["--signing-key", tmp_path / key, "--signing-certificate", tmp_path / certificate_file]
    line = build("app.eif", *words, expect=2)
    assert "cannot " in line and reason in line
    assert not (tmp_path / "app.eif").exists() and not (tmp_path / "cache").exists()


def test_a_key_in_kms_signs(build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By boto3 and HTTP, with somebody in KMS's place who holds the key."""
    pytest.importorskip("boto3", reason="boto3 is not installed (pip install 'enclavekit-eif[kms]')")
    key = serialization.load_pem_private_key((tmp_path / "signer.key").read_bytes(), None)
    asked = []

    class Kms(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append((self.headers["X-Amz-Target"], request["KeyId"], request["MessageType"]))
            digest = base64.b64decode(request["Message"])
            signature = key.sign(digest, ec.ECDSA(utils.Prehashed(hashes.SHA256())))
            answer = json.dumps({"Signature": base64.b64encode(signature).decode()}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Kms)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        monkeypatch.setenv("AWS_ENDPOINT_URL_KMS", f"http://127.0.0.1:{server.server_address[1]}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "nothing")
        arn = "arn:aws:kms:eu-west-1:111122223333:key/1234"
        result = build("kms.eif", "--kms-key", arn, "--signing-certificate", tmp_path / "signer.crt")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert asked == [("TrentService.Sign", arn, "DIGEST")]
    with read_eif(tmp_path / "kms.eif") as eif:
        measured = measure(eif)
        verify_signature(read_signature(eif), measured.pcr0)
        assert measured.to_json() == result["measurements"] and "PCR8" in result["measurements"]
