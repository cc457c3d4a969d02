# SPDX-License-Identifier: Apache-2.0
"""The list: what it refuses to be, whom it knows, what it grants."""

import contextlib

import pytest
import yaml
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from enclavekit_attestation.caller import Identity
from enclavekit_core.errors import ConfigError, RemoteProtocolError, VerificationError
from enclavekit_pipeline.enclave.clients import (
    Clients,
    Grant,
    Refused,
    check_comparison,
    check_forward,
    check_path,
    check_request,
)
from enclavekit_pipeline.host.identity import generate
from enclavekit_pipeline.wire.copy_messages import CopyInRequest, CopyOutRequest
from enclavekit_pipeline.wire.exec_messages import ExecRequest
from enclavekit_pipeline.wire.forward_messages import DialRequest, ListenRequest
from enclavekit_pipeline.wire.requests import MAX_LOGGED_CHARS, target_of
from hypothesis import given
from hypothesis import strategies as st

KEY = "ab" * 32
FORWARDS_REFUSED = (
    "8443",
    "127.0.0.1:8443",
    "tcp://h:08443",
    "vsock://3:1",
    "unix:///a/../b",
    "unix://a",
    "tcp://h:99999",
)


def load(tmp_path, *clients):
    path = tmp_path / "clients.yaml"
    path.write_text(yaml.safe_dump({"clients": list(clients)}))
    return Clients.load(str(path))


@pytest.mark.parametrize(
    "clients",
    [
        [],
        [{"name": "a", "allow": ["exec"]}],
        [{"name": "a", "allow": ["exec"], "spki_sha256": "ab"}],
        [{"name": "a", "allow": ["exec"], "spki_sha256": KEY, "certificate": "x"}],
        [{"name": "a", "allow": ["exec"], "certificate": "x"}],
        [{"name": "a", "allow": ["fly"], "spki_sha256": KEY}],
        [{"name": "a", "allow": ["exec"], "spki_sha256": KEY, "admin": True}],
        [{"name": "a", "allow": ["exec"], "spki_sha256": KEY, "read": ["data"]}],
        [{"name": "a", "allow": ["exec"], "spki_sha256": KEY, "read": ["/data/../etc"]}],
        *(
            [{"name": "a", "allow": ["exec"], "spki_sha256": KEY, "user": "app", **limit}]
            for limit in ({"memory_max": "0K"}, {"memory_max": "1X"}, {"tasks_max": 0}, {"cpu_quota": "1"})
        ),
        [{"name": "a", "allow": ["exec"], "spki_sha256": KEY, "tasks_max": 5}],
        *([{"name": "a", "allow": [], "spki_sha256": KEY, "forward": [text]}] for text in FORWARDS_REFUSED),
        *([{"name": "a", "allow": [], "spki_sha256": KEY, "reverse": [text]}] for text in FORWARDS_REFUSED),
        [{"name": "a", "allow": [], "spki_sha256": KEY}, {"name": "b", "allow": [], "spki_sha256": KEY}],
        [{"name": "a", "allow": [], "spki_sha256": KEY}, {"name": "a", "allow": [], "spki_sha256": "cd" * 32}],
    ],
)
def test_lists_that_are_refused(tmp_path, clients):
    with pytest.raises(ConfigError):
        load(tmp_path, *clients)


def test_only_the_holder_of_a_listed_key_is_known(tmp_path):
    for name in ("alice", "mallory"):
        generate(name, str(tmp_path))
    clients = load(tmp_path, {"name": "alice", "allow": ["exec"], "certificate": (tmp_path / "alice.crt").read_text()})
    alice, mallory = (Identity.load(str(tmp_path / name)) for name in ("alice", "mallory"))
    assert clients.authenticate(alice.certificate_der, alice.sign(b"x"), b"x").name == "alice"
    for certificate, signature in (
        (mallory.certificate_der, mallory.sign(b"x")),
        (alice.certificate_der, mallory.sign(b"x")),
        (alice.certificate_der, alice.sign(b"y")),
        (alice.certificate_der, b""),
        (b"", alice.sign(b"x")),
    ):
        with pytest.raises(VerificationError):
            clients.authenticate(certificate, signature, b"x")


def test_who_is_listed_for_initctl_alone_does_not_enter(tmp_path):
    generate("watcher", str(tmp_path))
    certificate = (tmp_path / "watcher.crt").read_text()
    clients = load(tmp_path, {"name": "watcher", "allow": [], "control": ["status"], "certificate": certificate})
    watcher = Identity.load(str(tmp_path / "watcher"))
    with pytest.raises(VerificationError, match="may do nothing here"):
        clients.authenticate(watcher.certificate_der, watcher.sign(b"x"), b"x")


def test_ec_keys_work_as_well(tmp_path):
    import datetime

    from cryptography import x509
    from cryptography.hazmat.primitives import serialization

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "carol")])
    day = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)  # dates do not matter: the list decides
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, day, day + datetime.timedelta(1))
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
    )
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (tmp_path / "carol.crt").write_bytes(certificate)
    (tmp_path / "carol.key").write_bytes(pem)
    clients = load(tmp_path, {"name": "carol", "allow": ["exec"], "certificate": certificate.decode()})
    carol = Identity.load(str(tmp_path / "carol"))
    assert clients.authenticate(carol.certificate_der, carol.sign(b"x"), b"x").name == "carol"


@given(st.binary(max_size=300), st.binary(max_size=80))
def test_any_certificate_is_refused_in_words(certificate, signature):
    from enclavekit_pipeline.enclave.clients import ClientList

    clients = Clients(ClientList(clients=[Grant(name="a", allow=[], spki_sha256=KEY)]), "test")
    with pytest.raises(VerificationError):
        clients.authenticate(certificate, signature, b"x")


@pytest.mark.parametrize(
    ("patterns", "argv", "allowed"),
    [
        (None, ["anything", "at all"], True),
        ([], ["ls"], False),
        ([["ls"]], ["ls"], True),
        ([["ls"]], ["ls", "-l"], False),
        ([["ls", "..."]], ["ls", "-l", "/"], True),
        ([["ls", "..."]], ["/tmp/ls"], False),
        ([["cat", "/data/*"]], ["cat", "/data/a"], True),
        ([["cat", "/data/*"]], ["cat", "/data/../etc/shadow"], False),
        ([["cat", "/data/*"]], ["cat", "/etc/shadow"], False),
        ([["cat", "../x"]], ["cat", "../x"], True),
        ([["a"], ["b"]], ["b"], True),
    ],
)
def test_commands(patterns, argv, allowed):
    grant = Grant(name="a", allow=["exec"], commands=patterns)
    if allowed:
        check_request(grant, ExecRequest(argv=argv))
    else:
        with pytest.raises(Refused):
            check_request(grant, ExecRequest(argv=argv))


@pytest.mark.parametrize(
    ("allow", "request_"),
    [
        (["cp-in", "cp-out"], ExecRequest(argv=["ls"])),
        (["exec", "cp-out"], CopyInRequest(path="/x", name="x")),
        (["exec", "cp-in"], CopyOutRequest(path="/x")),
        (["exec", "cp-in", "cp-out"], CopyOutRequest(path="/x", system=True)),
        (["exec", "listen-remote"], DialRequest(target="tcp://127.0.0.1:1")),
        (["exec", "dial"], ListenRequest(listen="tcp://127.0.0.1:1")),
    ],
)
def test_verbs_and_system_must_be_granted(allow, request_):
    with pytest.raises(Refused):
        check_request(Grant(name="a", allow=allow), request_)


@pytest.mark.parametrize(
    ("granted", "target", "allowed"),
    [
        (None, "tcp://127.0.0.1:1", True),
        ([], "tcp://127.0.0.1:1", False),
        (["tcp://127.0.0.1:1"], "tcp://127.0.0.1:1", True),
        (["tcp://127.0.0.1:1"], "tcp://127.0.0.1:01", True),  # what counts is what it means
        (["tcp://127.0.0.1:1"], "tcp://127.0.0.1:11", False),
        (["tcp://127.0.0.1:1"], "tcp://localhost:1", False),
        (["unix:///a"], "unix:///a", True),
        (["unix:///a"], "unix:///a/b", False),
        (["unix:///a"], "tcp://127.0.0.1:1", False),
    ],
)
def test_forwards(granted, target, allowed):
    verbs = ["dial", "listen-remote"]
    for request, grant in (
        (DialRequest(target=target), Grant(name="a", allow=verbs, forward=granted, reverse=[])),
        (ListenRequest(listen=target), Grant(name="a", allow=verbs, reverse=granted, forward=[])),
    ):
        with contextlib.nullcontext() if allowed else pytest.raises(Refused):
            check_request(grant, request)
            check_forward(grant, request, request.address)


def test_unix_sockets_of_who_acts_as_somebody_are_listed_ones():
    """The listener connects and binds, as root: what everybody else may reach, and what is listed, that may be."""
    for user, granted, allowed in ((None, None, True), ("app", None, False), ("app", ["unix:///run/x"], True)):
        grant = Grant(name="a", allow=["dial", "listen-remote"], user=user, forward=granted, reverse=granted)
        for request in (DialRequest(target="unix:///run/x"), ListenRequest(listen="unix:///run/x")):
            check_request(grant, request)
            with contextlib.nullcontext() if allowed else pytest.raises(Refused):
                check_forward(grant, request, request.address)
    check_request(Grant(name="a", allow=["dial"], user="app"), DialRequest(target="tcp://127.0.0.1:1"))


@pytest.mark.parametrize(
    ("allow", "read", "allowed"),
    [
        (["cp-in"], None, False),
        (["cp-in", "cp-out"], None, True),
        (["cp-in", "cp-out"], ["/data"], True),
        (["cp-in", "cp-out"], ["/other"], False),
    ],
)
def test_comparing_is_reading(allow, read, allowed):
    with contextlib.nullcontext() if allowed else pytest.raises(Refused):
        check_comparison(Grant(name="a", allow=allow, read=read), "/data/x")


def test_what_is_logged_of_a_request_is_short():
    assert target_of(ExecRequest(argv=["x" * 60_000, "secret"])) == "x" * MAX_LOGGED_CHARS


@pytest.mark.parametrize("text", ["", "vsock://3:1", "tcp://h", "unix://a", "tcp://h:1\n", "tcp://h:65536", "x" * 5000])
def test_addresses_that_are_no_forward(text):
    for request in (DialRequest(target=text), ListenRequest(listen=text)):
        with pytest.raises(RemoteProtocolError):
            request.check()


@pytest.mark.parametrize(
    ("prefixes", "path", "allowed"),
    [
        (None, "/etc/x", True),
        (["/"], "/etc/x", True),
        (["/data"], "/data", True),
        (["/data/"], "/data/x", True),
        (["/data"], "/database", False),
        ([], "/data", False),
    ],
)
def test_paths(prefixes, path, allowed):
    for verb, grant in (
        ("cp-in", Grant(name="a", allow=[], write=prefixes, read=[])),
        ("cp-out", Grant(name="a", allow=[], read=prefixes, write=[])),
    ):
        if allowed:
            check_path(grant, verb, path)
        else:
            with pytest.raises(Refused):
                check_path(grant, verb, path)
