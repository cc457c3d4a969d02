# SPDX-License-Identifier: Apache-2.0
"""`attest verify --url`, `show` and `policy` as users run them."""

import json
import os

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import load_der_x509_certificate
from enclavekit_attestation import TlsIdentity, load_policy, parse_document
from enclavekit_attestation.fetch import parse_target
from enclavekit_core.errors import ConfigError
from enclavekit_eif.measure import measure
from enclavekit_eif.metadata import make_metadata
from enclavekit_eif.reader import read_eif
from enclavekit_eif.writer import write_eif

from .enclave_server import PCRS, EnclaveServer


@pytest.fixture
def start(make, chain_now):
    servers = []

    def run(**options):
        servers.append(EnclaveServer(make, chain_now, PCRS, **options))
        return servers[-1]

    yield run
    for server in servers:
        server.close()


def test_url_proves_the_key_of_the_very_connection(attest, start, trust):
    server = start()
    result = attest("verify", "--url", server.url, *trust, "--json")
    verdict = json.loads(result.out)
    assert result.code == 0, result
    assert verdict["binding"] == {"service": "ra-web-srv", "spki_sha256": server.identity.spki_sha256.hex()}
    assert verdict["nonce_checked"] is True
    assert attest("verify", "--url", f"{server.url}/attestation", *trust).code == 0
    nonces = {request.partition("nonce=")[2] for request in server.requests}
    assert len(nonces) == 2


def test_relayed_document_is_refused(attest, start, trust):
    server = start(bound_to=TlsIdentity.generate("enclave"))
    result = attest("verify", "--url", server.url, *trust)
    assert result.code == 19
    assert "another TLS key" in result.err


def test_all_steps_are_shown_when_asked_for(attest, start, trust):
    server = start(bound_to=TlsIdentity.generate("enclave"))
    server.fields["nonce"] = b"other"
    first = attest("verify", "--url", server.url, *trust, "--json")
    whole = attest("verify", "--url", server.url, *trust, "--json", "--all-steps")
    assert (first.code, whole.code) == (15, 15)
    assert [step["name"] for step in json.loads(first.out)["steps"] if not step["passed"]] == ["nonce"]
    assert [step["name"] for step in json.loads(whole.out)["steps"] if not step["passed"]] == ["nonce", "binding"]
    assert json.loads(whole.out)["failed_step"] == "nonce"


def test_evidence_for_another_service_is_refused(attest, start, trust):
    server = start(service="pipeline")
    assert attest("verify", "--url", server.url, *trust).code == 19
    assert attest("verify", "--url", server.url, *trust, "--service", "pipeline").code == 0


def test_no_evidence_exits_3(attest, start, trust):
    server = start()
    for status, headers, body in (
        (503, {}, b""),
        (200, {"Content-Type": "text/html"}, b"<html>"),
        (200, {"Content-Type": "application/cbor"}, b"x" * 20_000),
    ):
        server.misbehave = lambda *_, answer=(status, headers, body): answer
        assert attest("verify", "--url", server.url, *trust).code == 3
    server.close()
    assert attest("verify", "--url", server.url, *trust).code == 3
    server.server.server_close()


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("FILE",),
        ("--at", "1"),
        ("--at", "document"),
        ("--nonce", "cafe"),
        ("--certificate", "/dev/null", "--service", "x"),
    ],
)
def test_url_cannot_go_with_flags_about_a_file(attest, arguments):
    if arguments:
        arguments = ("--url", "https://127.0.0.1:1", *arguments)
    assert attest("verify", *arguments).code == 2


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://a", "https://a:443/attestation"),
        ("https://a:8443/", "https://a:8443/attestation"),
        ("https://[::1]:8443/x/y", "https://[::1]:8443/x/y"),
    ],
)
def test_targets(url, expected):
    assert parse_target(url).url == expected


@pytest.mark.parametrize(
    "url",
    ["", "a", "http://a", "https://", "https://a:x", "https://u@a", "https://a/?n=1", "https://a/#f", "https://["],
)
def test_other_targets_are_refused(url):
    with pytest.raises(ConfigError):
        parse_target(url)


def test_show_says_that_nobody_has_verified(attest, production, tmp_path):
    document = parse_document(production.raw)
    text = attest("show", production.path)
    assert text.code == 0
    assert text.out.startswith("UNVERIFIED")
    assert document.pcrs[0].hex() in text.out
    assert "aws.nitro-enclaves" in text.out
    shown = json.loads(attest("show", production.path, "--json").out)
    assert shown["verified"] is False
    assert shown["certificate"] == document.certificate.hex()
    (tmp_path / "doc").write_bytes(production.raw[:-1])
    assert attest("show", tmp_path / "doc").code == 11
    assert attest("show", tmp_path / "none").code == 2


def test_policy_of_an_image_accepts_that_image(attest, make, chain, tmp_path):
    for name in ("kernel", "ramdisk0", "ramdisk1"):
        (tmp_path / name).write_bytes(name.encode())
    image = tmp_path / "app.eif"
    write_eif(
        str(image),
        kernel=str(tmp_path / "kernel"),
        cmdline=b"console=ttyS0",
        ramdisks=[str(tmp_path / "ramdisk0"), str(tmp_path / "ramdisk1")],
        metadata=make_metadata("app", "1"),
    )
    with read_eif(image) as read:
        expected = measure(read).registers()
    path = tmp_path / "policy.yaml"
    assert attest("policy", "new", "--eif", image, "--output", path, "--name", "app 1.0").code == 0
    policy = load_policy(str(path))
    assert policy.measurements[0].pcrs == expected
    assert attest("policy", "new", "--eif", image, "--name", "app 1.0").out == path.read_text()
    assert attest("policy", "new", "--eif", image, "-o", path).code == 2  # it is there already

    document = tmp_path / "doc"
    root = tmp_path / "root.pem"
    root.write_bytes(load_der_x509_certificate(chain.root).public_bytes(Encoding.PEM))
    flags = ("--at", "document", "--policy", path, "--insecure-dev-root", root, "--json")
    document.write_bytes(make.document(chain, {"pcrs": {**PCRS, **expected}}))
    assert json.loads(attest("verify", document, *flags).out)["measurement_set"] == "app 1.0"
    document.write_bytes(make.document(chain, {"pcrs": {**PCRS, **expected, 2: PCRS[2]}}))
    assert attest("verify", document, *flags).code == 17

    damaged = bytearray(image.read_bytes())
    damaged[damaged.index(b"ramdisk1")] ^= 1
    image.write_bytes(damaged)
    assert attest("policy", "new", "--eif", image).code == 6


def test_policy_of_describe_eif_output(attest, data_dir, tmp_path):
    described = os.path.join(data_dir, "nitro-cli-describe-eif.json")
    made = attest("policy", "new", "--measurements", described)
    (tmp_path / "policy.yaml").write_text(made.out)
    checked = attest("policy", "check", tmp_path / "policy.yaml", "--json")
    assert json.loads(checked.out)["identifies_code"] is True
    assert attest("policy", "new").code == 2
    assert attest("policy", "new", "--eif", tmp_path / "none").code == 2


def test_policy_check_names_what_is_open(attest, tmp_path):
    path = tmp_path / "policy.yaml"
    path.write_text(f"pcrs: {{4: '{PCRS[4].hex()}'}}\nallow_debug: true\n")
    result = attest("policy", "check", path)
    assert result.code == 0
    assert "does not pin the image" in result.out
    assert "debug" in result.out
    path.write_text("pcrs: {0: x}\n")
    assert attest("policy", "check", path).code == 2


def test_pipeline_reads_the_same_policy(tmp_path):
    """One loader for both: what `attest policy new` writes is what `pipeline --policy` takes."""
    pytest.importorskip("enclavekit_pipeline")
    from enclavekit_attestation.commands.policy import format_policy
    from enclavekit_pipeline.host.trust import build_trust

    path = tmp_path / "policy.yaml"
    path.write_text(format_policy("app", {0: PCRS[0]}))
    trust = build_trust(
        eif=None,
        policy=str(path),
        pcrs=[],
        insecure_dev_root=None,
        allow_debug=False,
        max_age_s=None,
        environment={},
    )
    assert trust.policy == load_policy(str(path))
