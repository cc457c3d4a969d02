# SPDX-License-Identifier: Apache-2.0
import hashlib
import json
import ssl

import pytest
from cryptography import x509
from enclavekit_attestation import TlsIdentity, check_binding, encode_binding
from enclavekit_attestation.binding import read_state
from enclavekit_core.errors import LocalProtocolError, VerificationError
from enclavekit_core.tls import attested_client_context, peer_certificate_der, server_context


@pytest.fixture(scope="module")
def identity():
    return TlsIdentity.generate("enclave")


@pytest.fixture(scope="module")
def certificate(identity):
    return ssl.PEM_cert_to_DER_cert(identity.certificate_pem.decode())


def test_identity_is_consistent_and_fresh(identity, certificate):
    parsed = x509.load_der_x509_certificate(certificate)
    assert hashlib.sha256(identity.spki_der).digest() == identity.spki_sha256
    assert parsed.subject.rfc4514_string() == "CN=enclave"
    assert TlsIdentity.generate("enclave").spki_sha256 != identity.spki_sha256
    assert "PRIVATE" not in repr(identity)


def test_binding_holds_over_a_real_tls_connection(identity):
    """The certificate that a TLS 1.3 client sees is the one that the binding is about."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = server_context(identity.certificate_pem, identity.key_pem)
    server = context.wrap_bio(to_server, to_client, server_side=True)
    client = attested_client_context().wrap_bio(to_client, to_server)
    waiting = [client, server]
    while waiting:
        for side in list(waiting):
            try:
                side.do_handshake()
                waiting.remove(side)
            except ssl.SSLWantReadError:
                pass
    user_data = encode_binding("pipeline", identity.spki_sha256)
    check_binding(user_data, "pipeline", peer_certificate_der(client), public_key=identity.spki_der)


def test_encoding_is_compact_json(identity):
    digest = identity.spki_sha256
    expected = b'{"purpose":"enclavekit/tls/1","service":"ra-web-srv","spki_sha256":"%s"}' % digest.hex().encode()
    assert encode_binding("ra-web-srv", digest) == expected


@pytest.mark.parametrize(("service", "digest"), [("", bytes(32)), ("a" * 65, bytes(32)), ("ü", bytes(32)), ("x", b"")])
def test_encoding_refuses_what_it_cannot_bind(service, digest):
    with pytest.raises(LocalProtocolError):
        encode_binding(service, digest)


def test_state_follows_the_key_in_one_form(identity, certificate):
    state = {
        "vrf_cipher_suite": "ECVRF-EDWARDS25519-SHA512-TAI",
        "vrf_public_key": "ab" * 32,
        "manifest_root": "cd" * 64,
    }
    full = encode_binding("ra-web-srv", identity.spki_sha256, state)
    assert len(full) <= 512
    assert list(json.loads(full)) == ["purpose", "service", "spki_sha256", *state]
    assert read_state(full, "ra-web-srv") == state
    check_binding(full, "ra-web-srv", certificate)
    assert read_state(encode_binding("ra-web-srv", identity.spki_sha256), "ra-web-srv") == {}
    for name in state:
        partial = {name: state[name]}
        assert read_state(encode_binding("ra-web-srv", identity.spki_sha256, partial), "ra-web-srv") == partial
        with pytest.raises(LocalProtocolError):
            encode_binding("ra-web-srv", identity.spki_sha256, {name: "AB\n"})
    with pytest.raises(LocalProtocolError):
        encode_binding("ra-web-srv", identity.spki_sha256, {"other": "x"})
    reversed_state = json.dumps(dict(reversed(json.loads(full).items())), separators=(",", ":")).encode()
    doubled = full[:-1] + b',"manifest_root":"' + b"cd" * 64 + b'"}'
    unknown = full[:-1] + b',"other":"x"}'
    for bad in (reversed_state, doubled, unknown, full.replace(b"cd", b"CD"), full.replace(b'"cd', b' "cd')):
        for read in (lambda: read_state(bad, "ra-web-srv"), lambda: check_binding(bad, "ra-web-srv", certificate)):  # noqa: B023 - called at once
            with pytest.raises(VerificationError):
                read()


def test_binding_refuses_everything_else(identity, certificate):
    good = encode_binding("pipeline", identity.spki_sha256)
    other = TlsIdentity.generate("enclave")
    cases = {
        "no user_data": [None, b""],
        "another TLS key": [encode_binding("pipeline", other.spki_sha256), good.replace(b",", b", ", 1)],
        "made for service 'ra-web-srv'": [encode_binding("ra-web-srv", identity.spki_sha256)],
        "no binding": [b"\xff", b"[]", b"{}", b"1", b"[" * 100_000, good.replace(b"tls/1", b"tls/2"), good[:-1]],
    }
    for reason, values in cases.items():
        for user_data in values:
            with pytest.raises(VerificationError, match=reason):
                check_binding(user_data, "pipeline", certificate)
    with pytest.raises(VerificationError, match="public_key"):
        check_binding(good, "pipeline", certificate, public_key=other.spki_der)
    with pytest.raises(VerificationError, match="cannot be read"):
        check_binding(good, "pipeline", certificate[:-1])
