# SPDX-License-Identifier: Apache-2.0
"""The interface of the Rust ra-web-srv: what its clients send and read works here; what was wrong there does not."""

import json
import ssl

import ecvrf
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_der_public_key, load_pem_public_key
from enclavekit_attestation.document import parse_document

from .conftest import PCRS, POST_JSON

FOUR = ["file_path", "sha3_hash", "vrf_proof", "vrf_cipher_suite"]


@pytest.fixture
def note(server, data):
    """A file that was generated."""
    (data / "note").write_bytes(b"note")
    assert server.generate_and_wait(str(data))["state"] == "done"
    return str(data / "note")


def test_every_route_with_and_without_slash(server, note):
    document = server.get("/doc", path=note, view="hex").json["att_doc"]
    pcrs = server.get("/doc", path=note, view="pcrs").json["att_doc"]["PCRs"]
    proof = server.get("/doc", path=note, view="att_doc_user_data").json["att_doc"]
    for route, query in [
        *((route, {"path": note}) for route in ("/ready", "/readiness", "/hash", "/hashes", "/proof", "/proofs")),
        *((route, {"path": note}) for route in ("/doc", "/docs", "/echo", "/manifest")),
        *((route, {}) for route in ("/pubkeys", "/pcrs", "/nsm_desc", "/rng_seq", "/hello", "/health", "/metrics")),
        ("/attestation", {"nonce": "00"}),
    ]:
        answers = [server.get(spelling, **query) for spelling in (route, route + "/")]
        assert [answer.status for answer in answers] == [200, 200], route
        assert len({answer.headers["Content-Type"] for answer in answers}) == 1
    sha3 = server.get("/hash", path=note).json["sha3_hash"]
    for route, body in {
        "/generate": {"path": note},
        "/verify_pcrs": {"pcrs": pcrs},
        "/verify_hash": {"file_path": note, "sha3_hash": sha3},
        "/verify_proof": proof,
        "/verify_doc": {"cose_doc_bytes": document},
        "/verify_cert_valid": {"cose_doc_bytes": document},
        "/verify_cert_bundle": {"cose_doc_bytes": document},
    }.items():
        for spelling in (route, route + "/"):
            assert server.post(spelling, body).status in (200, 202), spelling
            assert server.request("GET", spelling).status == 405
            assert server.request("POST", spelling, b"{}").status == 415
            assert server.request("POST", spelling, b"{}", POST_JSON).status == 400


def test_fields_of_single_and_list_routes(server, note, data):
    (data / "other").write_bytes(b"other")
    (data / "sub").mkdir()
    (data / "sub/deep").write_bytes(b"deep")
    (data.parent / "database").mkdir()
    server.generate_and_wait(str(data))
    files = sorted(str(data / name) for name in ("note", "other", "sub/deep"))
    ready = server.get("/ready/", path=note).json
    assert list(ready) == ["file_path", "sha3_hash", "status"]
    assert ready["status"] == "Ready"
    readiness = server.get("/readiness/", path=str(data)).json
    assert readiness == {
        "path": str(data),
        "ready": [server.get("/ready/", path=path).json for path in files],
        "processing": [],
        "next": None,
    }
    for route, name in (("/hash", "hashes"), ("/proof", "proofs")):
        listed = server.get(f"/{name}/", path=str(data)).json
        assert listed[name] == [server.get(route, path=path).json for path in files]
        assert listed["path"] == str(data)
    assert [list(item)[:4] for item in listed["proofs"]] == [FOUR] * 3
    # a directory, not a beginning of names
    assert server.get("/hashes/", path=str(data)[:-1]).json["hashes"] == []
    assert [item["file_path"] for item in server.get("/hashes/", path=note).json["hashes"]] == [note]
    for path in files:
        server.get("/doc", path=path)
    documents = server.get("/docs/", path=str(data), view="hex").json
    assert [item["file_path"] for item in documents["documents"]] == files
    assert documents["documents"][0] == server.get("/doc/", path=files[0], view="hex").json


def test_lists_come_in_pages(server, data):
    names = [str(data / f"{number:02}") for number in range(7)]
    for name in names:
        with open(name, "w") as out:
            out.write(name)
    server.generate_and_wait(str(data))
    seen, after = [], ""
    while after is not None:
        page = server.get("/hashes", path=str(data), limit=3, after=after).json
        seen.append([item["file_path"] for item in page["hashes"]])
        after = page["next"]
    assert seen == [names[:3], names[3:6], names[6:]]
    for limit in ("0", "1001", "x", "-1"):
        assert server.get("/hashes", path=str(data), limit=limit).status == 400


def test_views(server, note):
    def show(view):
        return server.get("/doc", path=note, view=view).json["att_doc"]

    raw = show("bin_hex")
    document = parse_document(bytes.fromhex(raw))
    for view in ("bin", "hex", "cose_doc", "cose_doc_bin", "cose_doc_hex", "cose_doc_bin_hex"):
        assert show(view) == raw
    for view in ("att_doc", "att_doc_bin", "att_doc_hex", "att_doc_bin_hex"):
        assert bytes.fromhex(show(view)) == document.envelope.payload
    for view in ("att_doc_user_data", "att_doc_user_data_json", "att_doc_user_data_json_hex"):
        assert show(view) == {"user_data": document.user_data.hex(), "public_key": document.public_key.hex()}
    for view in ("pcr", "pcrs"):
        assert show(view)["PCRs"].startswith(f"0: {PCRS[0].hex()}, 1: {PCRS[1].hex()}, ")
    numbers = json.loads(show("json_str")["payload"])
    assert bytes(numbers["user_data"]) == document.user_data
    assert show("json_hex") == server.get("/doc", path=note).json["att_doc"]
    for view in ("json_debug", "debug", "debug_pretty_print"):
        assert document.module_id in show(view)
    assert show("xml")["att_doc_hex"] == raw
    assert "json_hex" in show("xml")["supported_views"]


def test_content_types(server, note):
    for route, kind in {
        f"/hash?path={note}": "application/json",
        "/hash": "application/json",
        "/hello": "text/html; charset=utf-8",
        "/": "text/html; charset=utf-8",
        "/metrics": "text/plain; version=0.0.4; charset=utf-8",
        "/nothing": "application/json",
    }.items():
        assert server.request("GET", route).headers["Content-Type"] == kind


def test_public_keys_in_all_forms(server, note):
    default = server.get("/pubkeys/").json
    text = server.get("/pubkeys/", view="text").json
    assert bytes.fromhex(default["pubkey4proofs"]).decode() == text["pubkey4proofs"]
    binary = server.get("/pubkeys/", view="json", fmt="der").json
    documents = load_pem_public_key(text["pubkey4docs"].encode())
    assert load_der_public_key(bytes.fromhex(binary["pubkey4docs"])) == documents
    assert load_der_public_key(bytes.fromhex(binary["pubkey4proofs"])).public_bytes_raw() == bytes.fromhex(
        text["vrf_public_key"]
    )
    document = parse_document(bytes.fromhex(server.get("/doc", path=note, view="hex").json["att_doc"]))
    assert x509.load_der_x509_certificate(document.certificate).public_key() == documents
    assert document.public_key.hex() == text["vrf_public_key"]
    for query in ({"view": "string", "fmt": "der"}, {"view": "x"}, {"fmt": "x"}):
        answer = server.get("/pubkeys/", **query)
        assert (answer.status, list(answer.json)) == (400, ["error"])


def test_random_bytes(server):
    assert len(bytes.fromhex(server.get("/rng_seq").json["random_hex"])) == 512
    drawn = server.get("/rng_seq", length=1000).json
    assert drawn["length"] == 1000
    assert len(set(bytes.fromhex(drawn["random_hex"]))) > 100
    for length in ("0", "4097", "1000000000000", "-1", "x"):
        assert server.get("/rng_seq", length=length).status == 400


def test_echo(server):
    assert server.get("/echo/", a="1", path="/x").json == {
        "parameters": ["Query Parameter: a; Value: 1;", "Query Parameter: path; Value: /x;"],
        "path": "/x",
    }
    assert server.get("/echo").json == {"parameters": [], "path": "./"}


def test_verify_pcrs(server):
    actual = server.get("/pcrs/").json["pcrs"]
    text = ", ".join(f"{index}: {value}" for index, value in actual.items())
    for spelling in (text, text.replace(", ", ",\n"), text.upper()):
        assert server.post("/verify_pcrs/", {"pcrs": spelling}).json["valid"] is True
    first = text.partition(",")[0]
    for other in (first, text.replace("10101010", "20101010", 1)):
        verdict = server.post("/verify_pcrs/", {"pcrs": other}).json
        assert verdict["valid"] is False
        assert (verdict["provided_pcrs"], verdict["actual_pcrs"]) == (other, text)
    for bad in ("", "x", "0: 0", "0: 00, 0: 00"):
        assert server.post("/verify_pcrs/", {"pcrs": bad}).status == 400


def test_verify_hash(server, note, data, sha3):
    body = {"file_path": note, "sha3_hash": sha3(b"note").upper()}
    assert server.post("/verify_hash/", body).json["valid"] is True
    body["sha3_hash"] = sha3(b"other")
    verdict = server.post("/verify_hash/", body).json
    assert (verdict["valid"], verdict["computed_hash"]) == (False, sha3(b"note"))
    for path, status in ((data, 400), (data / "missing", 404), ("/etc/passwd", 403), ("/dev/zero", 403)):
        assert server.post("/verify_hash/", {**body, "file_path": str(path)}).status == status


def test_verify_proof(server, note):
    fields = server.get("/doc", path=note, view="att_doc_user_data").json["att_doc"]
    verdict = server.post("/verify_proof/", fields).json
    assert (verdict["valid"], verdict["own_key"]) == (True, True)
    claim = json.loads(bytes.fromhex(fields["user_data"]))
    changed = json.dumps({**claim, "sha3_hash": "00" * 64}, separators=(",", ":")).encode().hex()
    assert server.post("/verify_proof/", {**fields, "user_data": changed}).json["valid"] is False
    # a valid proof by a key of the caller's own is said to be by another's
    suite, secret = ecvrf.SUITES[claim["vrf_cipher_suite"]], bytes(range(32))
    alpha = json.dumps({name: claim[name] for name in FOUR[:2]}, separators=(",", ":")).encode()
    forged = json.dumps({**claim, "vrf_proof": suite.prove(secret, alpha).hex()}, separators=(",", ":")).encode()
    body = {"user_data": forged.hex(), "public_key": suite.public_key(secret).hex()}
    verdict = server.post("/verify_proof/", body).json
    assert (verdict["valid"], verdict["own_key"]) == (True, False)
    for bad in ("00", b"[]".hex(), b"{}".hex(), json.dumps({**claim, "vrf_cipher_suite": "X"}).encode().hex()):
        assert server.post("/verify_proof/", {**fields, "user_data": bad}).status == 400
    assert server.post("/verify_proof/", {**fields, "public_key": "xy"}).status == 400


def test_documents_are_verified_up_to_the_pinned_root_only(start_server, nsm, data, tmp_path):
    """Not up to the one that comes with them; under a development root only where it is named."""
    (tmp_path / "root.pem").write_text(ssl.DER_cert_to_PEM_cert(nsm.root_der))
    named = start_server("--no-bus", "--insecure-dev-root", str(tmp_path / "root.pem"))
    strict = start_server("--no-bus")
    (data / "f").write_bytes(b"")
    named.generate_and_wait(str(data / "f"))
    genuine = {"cose_doc_bytes": named.get("/doc", path=str(data / "f"), view="hex").json["att_doc"]}
    forged = {"cose_doc_bytes": server_of_wrong_root(start_server, nsm, data)}
    for server, body, valid in ((named, genuine, True), (strict, genuine, False), (named, forged, False)):
        assert server.post("/verify_doc/", body).json["valid"] is valid
        bundle = server.post("/verify_cert_bundle/", body).json
        assert (bundle["valid"], bundle["error_detail"] is None) == (valid, valid)
        certificate = server.post("/verify_cert_valid/", body).json
        assert (certificate["signature_valid"], certificate["time_valid"]) == (valid, True)
        assert "subject" in certificate["certificate_info"]
    for route in ("/verify_doc", "/verify_cert_valid", "/verify_cert_bundle"):
        for bad in ("00", genuine["cose_doc_bytes"][:-2], "d2" + forged["cose_doc_bytes"] + "00"):
            assert named.post(route, {"cose_doc_bytes": bad}).status == 400
    flipped = genuine["cose_doc_bytes"][:-2] + "00"
    assert named.post("/verify_doc/", {"cose_doc_bytes": flipped}).json["valid"] is False


def server_of_wrong_root(start_server, nsm, data):
    server = start_server("--no-bus", nsm_path=nsm.start("wrong-root"))
    server.generate_and_wait(str(data / "f"))
    return server.get("/doc", path=str(data / "f"), view="hex").json["att_doc"]


def test_expired_certificates_are_told(start_server, nsm, data, tmp_path):
    (tmp_path / "root.pem").write_text(ssl.DER_cert_to_PEM_cert(nsm.root_der))
    flags = ["--no-bus", "--insecure-dev-root", str(tmp_path / "root.pem")]
    server = start_server(*flags, nsm_path=nsm.start("expired-leaf"))
    (data / "f").write_bytes(b"")
    server.generate_and_wait(str(data / "f"))
    body = {"cose_doc_bytes": server.get("/doc", path=str(data / "f"), view="hex").json["att_doc"]}
    assert server.post("/verify_cert_bundle/", body).json["valid"] is False
    assert server.post("/verify_cert_valid/", body).json["time_valid"] is False
