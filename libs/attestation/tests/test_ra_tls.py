# SPDX-License-Identifier: Apache-2.0
"""`attest verify --ra-tls`: the evidence inside a TLS certificate, from a file or of a connection."""

import json
import ssl

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from enclavekit_attestation.binding import self_signed
from enclavekit_attestation.ra_tls import OID, document_in_certificate
from enclavekit_core.errors import VerificationError

from .enclave_server import PCRS, EnclaveServer


@pytest.fixture
def server(make, chain_now):
    running = EnclaveServer(make, chain_now, PCRS)
    yield running
    running.close()


@pytest.fixture
def pem(server):
    return server.show(server.document(None))


def forms(pem):
    """The ways in which users have a certificate."""
    text = b"CONNECTED(00000003)\n---\nCertificate chain\n 0 s:CN = enclave\n" + pem + b"---\nServer certificate\n"
    der = ssl.PEM_cert_to_DER_cert(pem.decode())
    return {"pem": pem, "der": der, "s_client": text, "crlf": text.replace(b"\n", b"\r\n")}


def test_certificate_in_a_file_is_verified_against_its_own_key(attest, server, trust, pem, tmp_path):
    for name, content in forms(pem).items():
        path = tmp_path / name
        path.write_bytes(content)
        result = attest("verify", path, "--ra-tls", *trust, "--json")
        assert result.code == 0, (name, result)
        verdict = json.loads(result.out)
        assert verdict["binding"] == {"service": "ra-web-srv", "spki_sha256": server.identity.spki_sha256.hex()}
        assert verdict["nonce_checked"] is False
        assert attest("show", path, "--ra-tls").out.startswith("UNVERIFIED")
    assert attest("verify", path, "--ra-tls", *trust, "--at", "document").code == 0


def test_certificate_of_a_connection(attest, server, trust, pem):
    assert attest("verify", "--url", server.url, "--ra-tls", *trust).code == 0
    assert server.requests == []  # the handshake was enough
    assert attest("verify", "--url", server.url, "--ra-tls", *trust[:2], "--pcr", "0=" + "ab" * 48).code == 17
    assert attest("verify", "--url", server.url, "--ra-tls", *trust, "--service", "pipeline").code == 19


def test_document_of_another_key_in_ones_own_certificate_is_refused(attest, server, trust, make, chain_now, tmp_path):
    """Anybody can copy an honest enclave's document into a certificate; the key in it is another."""
    other = EnclaveServer(make, chain_now, PCRS)
    other.close()
    (tmp_path / "relayed.pem").write_bytes(server.show(other.document(None)))
    assert attest("verify", tmp_path / "relayed.pem", "--ra-tls", *trust).code == 19
    assert attest("verify", "--url", server.url, "--ra-tls", *trust).code == 19


def test_stale_evidence_in_a_certificate_is_refused(attest, server, trust, tmp_path):
    server.fields["timestamp"] = 1_600_000_000_000
    (tmp_path / "old.pem").write_bytes(server.show(server.document(None)))
    assert attest("verify", tmp_path / "old.pem", "--ra-tls", *trust).code == 14


def test_policy_that_requires_a_nonce_is_not_met(attest, server, trust, pem, tmp_path):
    (tmp_path / "policy.yaml").write_text("pcrs: {}\nrequire_nonce: true\n")
    assert attest("verify", "--url", server.url, "--ra-tls", *trust, "--policy", tmp_path / "policy.yaml").code == 15


def test_certificate_without_evidence(attest, server, trust, tmp_path):
    (tmp_path / "plain.pem").write_bytes(server.identity.certificate_pem)
    refused = attest("verify", tmp_path / "plain.pem", "--ra-tls", *trust)
    assert (refused.code, refused.err.count("\n")) == (2, 1 + 1)  # and the warning about the root
    assert attest("show", tmp_path / "plain.pem", "--ra-tls").code == 2
    assert attest("verify", "--url", server.url, "--ra-tls", *trust).code == 3
    # a document is no certificate, a certificate no document
    assert attest("verify", tmp_path / "plain.pem", *trust).code == 2
    (tmp_path / "doc").write_bytes(server.document(None))
    assert attest("verify", tmp_path / "doc", "--ra-tls", *trust).code == 2


def test_pem_hidden_in_a_der_certificate_is_not_taken_for_it(attest, server, trust, pem, tmp_path):
    """What is verified must be the certificate that other programs find in the file."""
    hidden = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\n" + pem)
    der = ssl.PEM_cert_to_DER_cert(self_signed(ec.generate_private_key(ec.SECP256R1()), "x", hidden).decode())
    assert pem in der
    (tmp_path / "hostile.der").write_bytes(der)
    assert attest("verify", tmp_path / "hostile.der", "--ra-tls", *trust).code == 2


@pytest.mark.parametrize("content", [b"x", b"\x30\x82", b"-----BEGIN CERTIFICATE-----\n?\n-----END CERTIFICATE-----\n"])
def test_unusable_certificate_exits_2(attest, trust, tmp_path, content):
    (tmp_path / "bad").write_bytes(content)
    assert attest("verify", tmp_path / "bad", "--ra-tls", *trust).code == 2


@pytest.mark.parametrize("flags", [("--nonce", "cafe"), ("--certificate", "FILE", "--service", "x")])
def test_ra_tls_cannot_go_with_flags_about_other_documents(attest, pem, trust, tmp_path, flags):
    path = tmp_path / "c.pem"
    path.write_bytes(pem)
    flags = [str(path) if flag == "FILE" else flag for flag in flags]
    assert attest("verify", path, "--ra-tls", *trust, *flags).code == 2


def test_extension_given_twice_is_no_evidence():
    """Two readers might take one each."""
    neighbour = x509.ObjectIdentifier(OID.dotted_string[:-1] + "7")
    key = ec.generate_private_key(ec.SECP256R1())
    extensions = [x509.UnrecognizedExtension(oid, b"document") for oid in (OID, neighbour)]
    der = ssl.PEM_cert_to_DER_cert(self_signed(key, "x", *extensions).decode())
    assert document_in_certificate(der) == b"document"
    twice = der.replace(encode_oid(neighbour), encode_oid(OID))
    assert twice != der
    with pytest.raises(VerificationError):
        document_in_certificate(twice)


def encode_oid(oid):
    """Return the content of an OID's DER: X.690, 8.19."""
    first, second, *rest = map(int, oid.dotted_string.split("."))
    encoded = b""
    for number in (40 * first + second, *rest):
        groups = [number & 0x7F]
        while number := number >> 7:
            groups.append(number & 0x7F | 0x80)
        encoded += bytes(reversed(groups))
    return encoded
