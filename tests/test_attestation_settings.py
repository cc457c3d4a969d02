# SPDX-License-Identifier: Apache-2.0
"""`attestation` of the manifest says what ra-web-srv reads: the two sides share no code."""

import base64
import json
from typing import get_args, get_type_hints

import pytest
from ecvrf import SUITES
from enclavekit_core.config import load_config
from enclavekit_ra_web_srv.config import Config
from enclavekit_rbuilds.manifest.attestation import PATH, Attestation, render_attestation

from .conftest import NOTES, forwarded, start_enclave

ALL = {
    "roots": ["/data", "/models"],
    "vrf_cipher_suite": "ECVRF-SECP256K1-SHA256-TAI",
    "client_ca": "ca.pem",
    "proxied_port": 8444,
}
CURL = ["curl", "-sSfk", "--retry", "60", "--retry-all-errors", "--retry-delay", "1"]


def test_server_reads_what_the_manifest_writes(tmp_path):
    assert set(ALL) == set(Attestation.__struct_fields__)
    path = tmp_path / "ra-web-srv.yaml"
    path.write_bytes(dict(render_attestation(Attestation(**ALL), "PEM"))[PATH])
    config = load_config(Config, str(path))
    config.check()
    assert config.roots == ("/data", "/models")
    assert (config.vrf_cipher_suite, config.proxied_listen) == (ALL["vrf_cipher_suite"], "tcp://127.0.0.1:8444")
    assert config.client_ca == "/etc/enclavekit/ra-client-ca.pem"


def test_manifest_offers_the_suites_that_the_server_has():
    hint = get_type_hints(Attestation)["vrf_cipher_suite"]
    offered = {name for one in get_args(hint) for name in get_args(one)}
    assert offered == {name for name, suite in SUITES.items() if not suite.draft_05}


@pytest.mark.xdist_group("enclave")
def test_settings_of_an_image_hold_in_the_enclave(shell, notes):
    """Another VRF suite, client certificates, and a port for proxies that name their clients."""
    manifest = (NOTES / "enclave.yaml").read_text()
    settings = {**ALL, "roots": ["/data"], "client_ca": str(shell.directory / "keys/alice.crt")}
    (shell.directory / "settings.yaml").write_text(f"{manifest}\nattestation: {json.dumps(settings)}\n")
    shell.run(
        *("rbuilds", "build", "--rootfs", "notes.rootfs", "--config", "settings.yaml"),
        *("--authorize", "keys/alice.crt:all", "--output", "settings.eif"),
    )
    enclave = start_enclave(shell, shell.directory / "settings.eif", "--enclave-name", "settings")
    identity = ["--cert", "keys/alice.crt", "--key", "keys/alice.key"]

    def status(address, *flags):
        url = f"https://{address}/hash?path=/data/missing"
        return shell.output("curl", "-sk", *flags, "-o", "body", "-w", "%{http_code}", url)

    try:
        for port, flags in ((8443, ()), (8444, ("--send-proxy", "v2"))):
            with forwarded(shell, enclave.cid, port, *flags) as address:
                answer = shell.json(*CURL, f"https://{address}/attestation?nonce=00")
                assert answer["vrf_cipher_suite"] == ALL["vrf_cipher_suite"]
                assert len(base64.b64decode(answer["attestation_document"])) > 1000
                assert (status(address), status(address, *identity)) == ("403", "404")
        with forwarded(shell, enclave.cid, 8444) as address:  # without the header
            assert shell.run("curl", "-sk", f"https://{address}/health", expect=None).returncode != 0
    finally:
        shell.run("nitro-emu", "terminate-enclave", "--enclave-id", enclave.id)
