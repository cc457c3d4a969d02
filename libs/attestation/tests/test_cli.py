# SPDX-License-Identifier: Apache-2.0
"""`attest verify` as users run it: exit codes, input forms, and what is said on which stream."""

import base64
import io
import json
import os
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import load_der_x509_certificate
from enclavekit_attestation import TlsIdentity, encode_binding, parse_document
from enclavekit_attestation.cli import main


@pytest.fixture
def verify(capsys):
    def run(*arguments):
        try:
            code = main(["verify", *map(str, arguments)])
        except SystemExit as exc:
            code = exc.code
        out, err = capsys.readouterr()
        return SimpleNamespace(code=code, out=out, err=err)

    return run


@pytest.fixture
def development(make, tmp_path):
    """A live document under a development root, with a TLS binding; `fields` are changes to it."""

    def write(fields=()):
        chain = make.chain(
            **{
                name: {"not_before": now(-1), "not_after": now(1)} for name in ("root", "regional", "zonal", "instance")
            },
            leaf={"not_before": now(-1), "not_after": now(1)},
        )
        raw = make.document(chain, {"timestamp": time.time_ns() // 1_000_000, **dict(fields)})
        (tmp_path / "doc").write_bytes(raw)
        (tmp_path / "root.pem").write_bytes(load_der_x509_certificate(chain.root).public_bytes(Encoding.PEM))
        return SimpleNamespace(doc=tmp_path / "doc", root=tmp_path / "root.pem")

    return write


def now(days):
    import datetime

    return datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=days)


@pytest.mark.parametrize("at", ["1734075478960", "document"])
def test_real_document_is_verified(verify, production, at):
    result = verify(production.path, "--at", at)
    assert result.code == 0, result
    assert "VERIFIED" in result.out
    assert result.err == ""


def test_installed_command_works_alone(production):
    argv = [os.path.join(os.path.dirname(sys.executable), "attest"), "verify", production.path, "--at", "document"]
    if not os.path.exists(argv[0]):
        pytest.skip("the command is not installed")
    assert subprocess.run(argv, capture_output=True).returncode == 0


def test_json_verdict_has_every_field(verify, production):
    document = parse_document(production.raw)
    result = verify(production.path, "--at", "document", "--pcr", f"0={document.pcrs[0].hex()}", "--json")
    verdict = json.loads(result.out)
    assert result.code == 0
    assert (verdict["verified"], verdict["mode"], verdict["compared_pcrs"]) == (True, "archival", [0])
    assert verdict["pcrs"] == {str(index): value.hex() for index, value in document.pcrs.items()}
    assert (verdict["module_id"], verdict["development_root"]) == (document.module_id, False)


@pytest.mark.parametrize("json_flag", [(), ("--json",)])
def test_refused_document_exits_17_with_the_reason(verify, production, json_flag):
    result = verify(production.path, "--at", "document", "--pcr", "0=" + "ab" * 48, *json_flag)
    assert result.code == 17
    assert "PCR0 is" in result.out
    assert result.err.count("\n") == 1
    if json_flag:
        assert json.loads(result.out)["verified"] is False


def test_expired_document_exits_12_live(verify, production):
    assert verify(production.path).code == 12


@pytest.mark.parametrize(
    "form",
    [
        lambda raw: raw.hex().encode() + b"\n",
        lambda raw: b"0x" + raw.hex().upper().encode(),
        base64.b64encode,
        base64.encodebytes,
        lambda raw: base64.urlsafe_b64encode(raw).rstrip(b"="),
        lambda raw: b"\xd2" + raw,
    ],
)
def test_text_forms_and_standard_input(verify, production, tmp_path, monkeypatch, form):
    encoded = form(production.raw)
    path = tmp_path / "doc"
    path.write_bytes(encoded)
    assert verify(path, "--at", "document").code == 0
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(encoded)))
    assert verify("-", "--at", "document").code == 0


@pytest.mark.parametrize("content", [b"", b"hello, world", b"abcde", b"{}", b"\x84" * 100_000, b"A" * 5])
def test_unusable_file_exits_2(verify, tmp_path, content):
    path = tmp_path / "doc"
    path.write_bytes(content)
    result = verify(path, "--at", "1")
    assert result.code == 2
    assert result.err.startswith("attest: cannot read document")


def test_changed_document_exits_by_what_was_changed(verify, production, tmp_path):
    path = tmp_path / "doc"
    for position, code in ((0, 11), (5, 11), (700, 13), (3000, 12), (len(production.raw) - 1, 13)):
        changed = bytearray(production.raw)
        changed[position] ^= 0x10
        path.write_bytes(changed)
        assert verify(path, "--at", production.made_at_ms).code == code
        assert verify(path, "--at", "document").code == code


@pytest.mark.parametrize(
    "arguments",
    [
        ("--at", "yesterday"),
        ("--at", "-1"),
        ("--nonce", "xyz"),
        ("--nonce", ""),
        ("--pcr", "0"),
        ("--pcr", "0=abcd"),
        ("--pcr", "32=" + "ab" * 48),
        ("--pcr", "0=" + "00" * 48),
        ("--pcr", "0=" + "ab" * 48, "--pcr", "0=" + "cd" * 48),
        ("--max-age", "0"),
        ("--max-age", "soon"),
        ("--policy", "/nonexistent"),
        ("--measurements", "/nonexistent"),
        ("--insecure-dev-root", "/nonexistent"),
        ("--insecure-dev-root", "/dev/null"),
        ("--certificate", "/dev/null"),
        ("--surprise",),
    ],
)
def test_unusable_command_line_exits_2(verify, production, arguments):
    result = verify(production.path, *arguments)
    assert result.code == 2
    assert result.out == ""


def test_missing_file_exits_2(verify, tmp_path):
    assert verify(tmp_path / "none").code == 2
    assert verify(tmp_path).code == 2


def test_development_root_counts_only_when_named(verify, development):
    made = development()
    refused = verify(made.doc)
    assert refused.code == 12
    assert "another root" in refused.err
    accepted = verify(made.doc, "--insecure-dev-root", made.root)
    assert accepted.code == 0
    assert "warning" in accepted.err
    assert "DEVELOPMENT" in accepted.out


def test_named_development_root_replaces_the_aws_root(verify, development, production):
    assert verify(production.path, "--at", "document", "--insecure-dev-root", development().root).code == 12


def test_debug_document_needs_the_flag(verify, data_dir):
    path = os.path.join(data_dir, "attdoc-2022-10-debug-mode.cbor")
    assert verify(path, "--at", "document").code == 16
    assert verify(path, "--at", "document", "--allow-debug").code == 0


def test_nonce_and_binding(verify, development, tmp_path):
    identity = TlsIdentity.generate("enclave")
    fields = {
        "nonce": b"\xca\xfe",
        "user_data": encode_binding("ra-web-srv", identity.spki_sha256),
        "public_key": identity.spki_der,
    }
    made = development(fields)
    (tmp_path / "tls.pem").write_bytes(identity.certificate_pem)
    (tmp_path / "other.pem").write_bytes(TlsIdentity.generate("enclave").certificate_pem)
    trust = ("--insecure-dev-root", made.root, "--nonce", "cafe")
    assert verify(made.doc, *trust, "--service", "ra-web-srv", "--certificate", tmp_path / "tls.pem").code == 0
    assert verify(made.doc, *trust, "--service", "pipeline", "--certificate", tmp_path / "tls.pem").code == 19
    assert verify(made.doc, *trust, "--service", "ra-web-srv", "--certificate", tmp_path / "other.pem").code == 19
    assert verify(made.doc, *trust, "--certificate", tmp_path / "tls.pem").code == 2
    # without a certificate the bound key is shown, for the caller to pin
    assert verify(made.doc, *trust, "--service", "pipeline").code == 19
    shown = verify(made.doc, *trust, "--service", "ra-web-srv", "--json")
    assert json.loads(shown.out)["binding"] == {"service": "ra-web-srv", "spki_sha256": identity.spki_sha256.hex()}
    assert verify(made.doc, "--insecure-dev-root", made.root, "--nonce", "cafe00").code == 15


def test_policy_and_measurements_files(verify, production, tmp_path):
    pcrs = parse_document(production.raw).pcrs
    (tmp_path / "p.yaml").write_text(f"pcrs: {{PCR4: '{pcrs[4].hex()}'}}\n")
    (tmp_path / "m.json").write_text(json.dumps({"Measurements": {"PCR0": pcrs[0].hex(), "HashAlgorithm": "x"}}))
    files = ("--policy", tmp_path / "p.yaml", "--measurements", tmp_path / "m.json")
    result = verify(production.path, "--at", "document", *files, "--json")
    assert json.loads(result.out)["compared_pcrs"] == [0, 4]
    (tmp_path / "p.yaml").write_text("pcrs: {}\nmax_age_s: 5\n")
    assert verify(production.path, "--at", production.made_at_ms + 6000, *files).code == 14
    assert verify(production.path, "--at", production.made_at_ms + 6000, *files, "--max-age", "10").code == 0
