# SPDX-License-Identifier: Apache-2.0
"""TLS, client certificates, evidence in the certificate, plain HTTP, and what a server says about itself."""

import contextlib
import http.client
import json
import socket
import ssl

import pytest
from enclavekit_attestation.binding import TlsIdentity, check_binding
from enclavekit_attestation.policy import Policy
from enclavekit_attestation.ra_tls import document_in_certificate
from enclavekit_attestation.verify import Binding, verify
from enclavekit_core.errors import VerificationError

from .conftest import PCRS, TIMEOUT_S, free_port


def test_connections_are_kept(server):
    connection = server.connect()
    socket_before = connection.sock
    for _ in range(50):
        connection.request("GET", "/health")
        assert connection.getresponse().read()
        assert connection.sock is socket_before
    connection.close()


def test_certificate_holds_evidence_about_its_own_key(server, nsm):
    certificate = server.get("/health").certificate  # the very first that anybody sees
    document = document_in_certificate(certificate)
    verify(document, Policy(dict(PCRS)), root=nsm.root_der, binding=Binding("ra-web-srv", certificate))
    other = ssl.PEM_cert_to_DER_cert(TlsIdentity.generate("x").certificate_pem.decode())
    with pytest.raises(VerificationError):
        verify(document, Policy(dict(PCRS)), root=nsm.root_der, binding=Binding("ra-web-srv", other))
    answer = server.get("/attestation", {"Accept": "application/cbor"}, nonce="00")
    fresh = verify(answer.body, Policy(dict(PCRS)), root=nsm.root_der).document
    check_binding(fresh.user_data, "ra-web-srv", certificate)


def client_certificate(tmp_path, name):
    identity = TlsIdentity.generate(name)
    path = tmp_path / f"{name}.pem"
    path.write_bytes(identity.certificate_pem + identity.key_pem)
    return path


def test_client_certificates_where_they_are_asked_for(start_server, data, tmp_path):
    known, unknown = client_certificate(tmp_path, "known"), client_certificate(tmp_path, "unknown")
    (data / "f").write_bytes(b"x")
    server = start_server("--no-bus", "--client-ca", str(known))
    assert server.get("/attestation", nonce="00").status == 200
    for route in ("/hash", "/doc", "/docs", "/manifest"):
        assert server.get(route, path=str(data / "f")).status == 403
    assert server.generate(str(data)).status == 403
    server.certificate = known
    assert server.generate_and_wait(str(data))["state"] == "done"
    assert server.get("/doc", path=str(data / "f")).status == 200
    server.certificate = unknown
    with pytest.raises((ssl.SSLError, OSError, http.client.HTTPException)):
        server.get("/health")
    server.certificate = None


def test_plain_http_is_sent_to_the_configured_host_only(start_server):
    port = free_port()
    server = start_server(
        "--no-bus", "--http-listen", f"tcp://127.0.0.1:{port}", "--public-host", "enclave.example:8443"
    )
    for method, target, headers in (
        ("GET", "/doc/?path=/a%20b&x=1", {"Host": "evil.example"}),
        ("POST", "/generate", {"Host": "evil.example:8080", "X-Forwarded-Host": "evil.example"}),
        ("GET", "http://evil.example/pcrs/", {}),
        ("GET", "//evil.example/", {}),
    ):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
        connection.request(method, target, headers=headers)
        answer = connection.getresponse()
        assert answer.status == 308
        assert answer.headers["Location"].startswith("https://enclave.example:8443/"), target
        connection.close()
        if target.startswith("/doc"):
            assert answer.headers["Location"] == "https://enclave.example:8443/doc/?path=/a%20b&x=1"
    assert server.get("/health").status == 200


def test_ready_says_what_is_missing(start_server, nsm):
    server = start_server("--no-bus")
    ready = server.until(lambda: server.get("/ready"), lambda answer: answer.status == 200)
    assert ready.json == {"status": "ready", "nsm": "ok", "bus": "off", "manifest": "ok"}
    failing = start_server("--no-bus", nsm_path=nsm.start("failing")).get("/ready")
    assert failing.status == 503
    assert failing.json["nsm"].startswith("cannot ")


def test_metrics_count(start_server):
    server = start_server("--no-bus")
    server.get("/nothing")
    server.get("/pcrs")
    lines = server.get("/metrics").body.decode().splitlines()
    samples = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    assert samples['ra_web_srv_answers_total{status="404"}'] == "1"
    assert float(samples["ra_web_srv_nsm_calls_total"]) >= 1
    assert {line.split()[2] for line in lines if line.startswith("# TYPE")} == {
        name.partition("{")[0] for name in samples
    }


def test_openapi_document_names_every_route_and_its_types(stateless_server):
    document = stateless_server.get("/openapi.json").json
    assert document["openapi"].startswith("3.1")
    assert {"/attestation", "/doc", "/manifest", "/verify_proof", "/jobs/{job}"} <= set(document["paths"])
    attestation = document["paths"]["/attestation"]["get"]
    assert attestation["parameters"][0]["required"] is True
    assert attestation["parameters"][0]["schema"]["maxLength"] == 128
    assert "application/cbor" in attestation["responses"]["200"]["content"]
    for reference in json.dumps(document).split('"$ref": "#/components/schemas/')[1:]:
        assert reference.partition('"')[0] in document["components"]["schemas"]


def test_server_on_a_unix_socket(tmp_path, start_server):
    path = tmp_path / "ra.sock"
    server = start_server("--no-bus", "--listen", f"unix://{path}")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as plain:
        plain.connect(str(path))
        with context.wrap_socket(plain) as tls:
            tls.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            assert tls.recv(100).startswith(b"HTTP/1.1 200")
    assert server.process.poll() is None
