# SPDX-License-Identifier: Apache-2.0
"""Documents from the running server, verified as a client would."""

import base64
import json
import secrets
import time

import ecvrf
import pytest
from enclavekit_attestation.binding import check_binding
from enclavekit_attestation.policy import Policy
from enclavekit_attestation.verify import verify_document
from enclavekit_core.errors import VerificationError

from .conftest import MODULE_ID, PCRS


def verify(raw, nsm, **options):
    return verify_document(raw, Policy(dict(PCRS)), now_ms=time.time_ns() // 10**6, root=nsm.root_der, **options)


def test_attestation_binds_the_key_of_this_connection(stateless_server, nsm):
    nonce = secrets.token_bytes(32)
    answer = stateless_server.get("/attestation", nonce=nonce.hex())
    assert answer.status == 200
    assert answer.json["nonce"] == nonce.hex()
    verified = verify(base64.b64decode(answer.json["attestation_document"]), nsm, nonce=nonce)
    check_binding(verified.user_data, "ra-web-srv", answer.certificate, public_key=verified.public_key)
    assert json.loads(verified.user_data)["spki_sha256"] == answer.json["tls_spki_sha256"]
    assert verified.public_key is not None


def test_attestation_is_fresh_each_time(stateless_server, nsm):
    nonce = secrets.token_bytes(20)
    answers = [
        stateless_server.get("/attestation", {"Accept": "application/cbor"}, nonce=nonce.hex()) for _ in range(2)
    ]
    assert all(answer.headers["Content-Type"] == "application/cbor" for answer in answers)
    assert answers[0].body != answers[1].body
    for answer in answers:
        verify(answer.body, nsm, nonce=nonce)
    with pytest.raises(VerificationError):
        verify(answers[0].body, nsm, nonce=secrets.token_bytes(20))


def test_two_servers_have_two_keys(start_server, nsm):
    one, other = start_server("--no-bus"), start_server("--no-bus")
    evidence = one.get("/attestation", {"Accept": "application/cbor"}, nonce="00").body
    verified = verify(evidence, nsm)
    with pytest.raises(VerificationError):
        check_binding(verified.user_data, "ra-web-srv", other.get("/health").certificate)


@pytest.mark.parametrize("nonce", [None, "", "0", "xy", "00" * 65, "0x00", " 00", "00\n"])
def test_attestation_refuses_nonce(stateless_server, nonce):
    answer = stateless_server.get("/attestation", **({} if nonce is None else {"nonce": nonce}))
    assert answer.status == 400
    assert answer.json["error"].startswith("cannot use 'nonce' parameter")


def test_doc_signs_path_and_hash(server, nsm, data, sha3):
    (data / "note.txt").write_bytes(b"buy milk\n")
    path = str(data / "note.txt")
    assert server.generate_and_wait(path)["state"] == "done"
    answer = server.get("/doc/", path=path, view="bin_hex").json
    assert list(answer) == [
        *("file_path", "sha3_hash", "vrf_proof", "vrf_cipher_suite", "att_doc", "vrf_public_key"),
    ]
    verified = verify(bytes.fromhex(answer["att_doc"]), nsm)
    claim = {name: answer[name] for name in ("file_path", "sha3_hash", "vrf_proof", "vrf_cipher_suite")}
    assert claim["sha3_hash"] == sha3(b"buy milk\n")
    assert verified.user_data == json.dumps(claim, separators=(",", ":")).encode()
    alpha = json.dumps({"file_path": path, "sha3_hash": claim["sha3_hash"]}, separators=(",", ":")).encode()
    suite = ecvrf.SUITES[claim["vrf_cipher_suite"]]
    assert suite.verify(verified.public_key, alpha, bytes.fromhex(claim["vrf_proof"]))
    assert server.get("/proof/", path=path).json["vrf_proof"] == claim["vrf_proof"]
    assert len(verified.nonce) == 32
    # without a nonce the same document may be handed out again, with one never
    assert server.get("/doc/", path=path, view="bin_hex").json == answer
    nonce = secrets.token_hex(16)
    fresh = [server.get("/doc", path=path, view="bin_hex", nonce=nonce).json["att_doc"] for _ in range(2)]
    assert fresh[0] != fresh[1]
    verify(bytes.fromhex(fresh[0]), nsm, nonce=bytes.fromhex(nonce))


def test_doc_follows_the_content(server, nsm, data, sha3):
    file = data / "note.txt"
    file.write_bytes(b"one")
    server.generate_and_wait(str(file))
    first = server.get("/doc/", path=str(file)).json
    file.write_bytes(b"two")
    second = server.get("/doc/", path=str(file)).json
    assert [first["sha3_hash"], second["sha3_hash"]] == [sha3(b"one"), sha3(b"two")]
    assert json.loads(second["att_doc"]["payload"]["user_data"])["sha3_hash"] == sha3(b"two")


def test_doc_json_view_has_the_fields_of_the_rust_server(server, data, sha3):
    (data / "f").write_bytes(b"")
    server.generate_and_wait(str(data / "f"))
    document = server.get("/doc/", path=str(data / "f")).json["att_doc"]
    assert set(document) == {"protected_header", "unprotected_header", "payload", "signature"}
    assert document["protected_header"] == "01: 3822"
    payload = document["payload"]
    assert set(payload) == {
        *("module_id", "digest", "timestamp", "PCRs", "certificate", "ca_bundle", "public_key", "user_data", "nonce")
    }
    assert payload["module_id"] == MODULE_ID
    assert payload["timestamp"].isdigit()
    assert payload["PCRs"].startswith(f"0: {PCRS[0].hex()}, 1: {PCRS[1].hex()}, ")
    assert len(bytes.fromhex(payload["public_key"])) == 32
    assert len(bytes.fromhex(document["signature"])) == 96
    assert all(bytes.fromhex(certificate) for certificate in payload["ca_bundle"].split(", "))


def test_pcrs_and_description(stateless_server):
    pcrs = stateless_server.get("/pcrs/").json["pcrs"]
    assert {int(index): bytes.fromhex(value) for index, value in pcrs.items() if int(index) in PCRS} == PCRS
    described = stateless_server.get("/nsm_desc").json
    assert described["module_id"] == MODULE_ID
    assert described["digest"] == "SHA384"
    assert described["max_pcrs"] == 32
    assert described["locked_pcrs"] == list(range(16))


def test_failing_nsm_is_503_and_leaves_the_server_up(start_server, nsm, data):
    server = start_server("--no-bus", nsm_path=nsm.start("failing"))
    for _ in range(3):
        for route in ("/attestation?nonce=00", "/pcrs/", "/nsm_desc"):
            answer = server.request("GET", route)
            assert answer.status == 503
            assert answer.json["error"].startswith("cannot ")
    assert server.get("/health").status == 200
