# SPDX-License-Identifier: Apache-2.0
"""Both state machines: the one good order, and every other frame in every state."""

import pytest
from enclavekit_core.errors import RemoteProtocolError
from enclavekit_pipeline.wire.frames import Frame, Kind
from enclavekit_pipeline.wire.handshake import ClientHandshake, Evidence, Proof, ServerHandshake, proof_bytes

CLIENT_NONCE, SERVER_NONCE = bytes([1]) * 32, bytes([2]) * 32


def pair():
    return ClientHandshake(CLIENT_NONCE), ServerHandshake(SERVER_NONCE)


def test_the_good_order():
    client, server = pair()
    assert server.receive_hello(client.hello()) == CLIENT_NONCE
    assert client.receive_evidence(server.evidence(b"document")) == Evidence(SERVER_NONCE, b"document")
    assert server.receive_auth(client.auth(b"certificate", b"signature")) == Proof(b"certificate", b"signature")
    assert client.receive_accept(server.accept("alice")) == "alice"


def test_proof_covers_key_and_both_nonces():
    base = proof_bytes(bytes(32), CLIENT_NONCE, SERVER_NONCE)
    others = [
        proof_bytes(bytes([9]) * 32, CLIENT_NONCE, SERVER_NONCE),
        proof_bytes(bytes(32), SERVER_NONCE, SERVER_NONCE),
        proof_bytes(bytes(32), CLIENT_NONCE, CLIENT_NONCE),
    ]
    assert base not in others
    assert base.startswith(b"enclavekit/pipeline/3 client proof\0")


@pytest.mark.parametrize("kind", [kind for kind in Kind if kind is not Kind.HELLO])
def test_server_takes_hello_first(kind):
    with pytest.raises(RemoteProtocolError):
        pair()[1].receive_hello(Frame(kind, b"{}"))


@pytest.mark.parametrize("kind", [kind for kind in Kind if kind is not Kind.AUTH])
def test_server_takes_auth_second(kind):
    client, server = pair()
    server.receive_hello(client.hello())
    server.evidence(b"d")
    with pytest.raises(RemoteProtocolError):
        server.receive_auth(Frame(kind, b"{}"))


def test_server_takes_no_auth_before_evidence():
    client, server = pair()
    server.receive_hello(client.hello())
    with pytest.raises(RemoteProtocolError):
        server.receive_auth(client.auth(b"c", b"s"))


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b'{"version":99,"nonce":"' + b"00" * 32 + b'"}',
        b'{"version":3,"nonce":"00"}',
        b'{"version":3,"nonce":"zz"}',
        b'{"version":3}',
    ],
)
def test_server_refuses_a_bad_hello(payload):
    with pytest.raises(RemoteProtocolError):
        pair()[1].receive_hello(Frame(Kind.HELLO, payload))


@pytest.mark.parametrize("version", [1, 2])
def test_server_refuses_older_versions_by_name(version):
    with pytest.raises(RemoteProtocolError, match=f"version {version} is not spoken here, 3 is"):
        pair()[1].receive_hello(Frame(Kind.HELLO, b'{"version":%d,"nonce":"%b"}' % (version, b"00" * 32)))


@pytest.mark.parametrize("payload", [b"{}", b'{"certificate":"*","signature":""}', b'{"certificate":1,"signature":""}'])
def test_server_refuses_a_bad_proof(payload):
    client, server = pair()
    server.receive_hello(client.hello())
    server.evidence(b"d")
    with pytest.raises(RemoteProtocolError):
        server.receive_auth(Frame(Kind.AUTH, payload))


@pytest.mark.parametrize("kind", [kind for kind in Kind if kind is not Kind.EVIDENCE])
def test_client_takes_evidence_first(kind):
    client, _ = pair()
    client.hello()
    with pytest.raises(RemoteProtocolError):
        client.receive_evidence(Frame(kind, b'{"code":"x","message":"cannot"}'))


def test_client_refuses_short_evidence_and_stays_silent():
    client, _ = pair()
    client.hello()
    with pytest.raises(RemoteProtocolError):
        client.receive_evidence(Frame(Kind.EVIDENCE, bytes(32)))
    with pytest.raises(RemoteProtocolError):
        client.auth(b"c", b"s")


def test_refusal_reaches_the_caller_in_the_enclaves_words():
    client, server = pair()
    server.receive_hello(client.hello())
    client.receive_evidence(server.evidence(b"d"))
    client.auth(b"c", b"s")
    with pytest.raises(RemoteProtocolError, match="cannot enter the enclave: no"):
        client.receive_accept(Frame(Kind.ERROR, b'{"code":"denied","message":"cannot enter the enclave: no"}'))
