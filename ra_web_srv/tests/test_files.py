# SPDX-License-Identifier: Apache-2.0
"""Which files the server speaks about, and what it says."""

import hashlib
import json
import os
import shutil
import urllib.parse

import pytest
from enclavekit_core.bus import HASH_BYTES

from .conftest import POST_JSON


def test_hash_after_generate(server, data, sha3):
    (data / "f").write_bytes(b"content")
    path = str(data / "f")
    assert server.get("/hash/", path=path).status == 404  # nobody has asked for it to be hashed
    started = server.generate(path)
    assert started.status == 202
    assert started.json["status"] == "Started processing file"
    assert started.json["path"] == path
    job = server.until(lambda: server.get(f"/jobs/{started.json['job']}").json, lambda job: job["state"] != "running")
    assert (job["state"], job["hashed"], job["failed"]) == ("done", 1, 0)
    for route in ("/hash/", "/hash"):
        assert server.get(route, path=path).json == {"file_path": path, "sha3_hash": sha3(b"content")}


def test_generate_directory(server, data, sha3):
    (data / "d/e").mkdir(parents=True)
    files = {data / "d/one": b"1", data / "d/e/two": b"2", data / "d/sp ace": b"3"}
    for path, content in files.items():
        path.write_bytes(content)
    (data / "d/link").symlink_to("/etc/passwd")
    (data / "d/loop").symlink_to(".")
    os.mkfifo(data / "d/fifo")
    job = server.generate_and_wait(str(data / "d"))
    assert (job["state"], job["hashed"]) == ("done", 3)
    for path, content in files.items():
        assert server.get("/hash/", path=str(path)).json["sha3_hash"] == sha3(content)
    for odd in ("link", "loop", "fifo", "e"):
        assert server.get("/hash/", path=str(data / "d" / odd)).status == 404


def test_names_that_are_no_utf8_and_long_paths_go_in_by_digest(server, data, sha3):
    odd = os.fsencode(data) + b"/\xff\xfe"
    deep = data.joinpath(*["x" * 100] * 6)
    deep.parent.mkdir(parents=True)
    for path in (odd, os.fsencode(deep)):
        with open(path, "wb") as out:
            out.write(b"z")
        text = os.fsdecode(path)
        assert server.generate_and_wait(text)["state"] == "done"
        answer = server.get("/doc/", path=text).json
        assert answer["file_path"] == text
        claim = json.loads(answer["att_doc"]["payload"]["user_data"])
        assert claim["file_path_sha3_256"] == hashlib.sha3_256(path).hexdigest()
        assert claim["sha3_hash"] == sha3(b"z")
        assert "file_path" not in claim


def test_one_path_in_its_many_spellings(server, data, sha3):
    (data / "f").write_bytes(b"1")
    server.generate_and_wait(f"{data}//./f")
    for spelling in (f"{data}/f", f"{data}//f", f"{data}/./f", f"/{data}/f"):
        assert server.get("/hash/", path=spelling).json["file_path"] == f"{data}/f"


def test_outside_of_the_roots_there_is_one_answer(server, data, tmp_path):
    (tmp_path / "secret").write_text("x")
    (tmp_path / "database").mkdir()
    (tmp_path / "database/f").write_text("x")
    answers = []
    for path in (
        "/etc/passwd",
        "/etc/no such file",
        "/proc/self/environ",
        "/dev/zero",
        str(tmp_path / "secret"),
        str(tmp_path / "database/f"),  # a sibling that begins with the root's name
        f"{data}/../secret",
        f"{data}/x/../../secret",
        "relative",
        "/",
        f"{data}\0",
    ):
        for answer in (server.get("/hash/", path=path), server.get("/doc/", path=path), server.generate(path)):
            assert answer.status == 403
            answers.append(answer.body)
    assert len(set(answers)) == 1


def test_links_inside_the_roots_lead_nowhere(server, data, tmp_path):
    (tmp_path / "secret").write_text("x")
    (data / "link").symlink_to(tmp_path / "secret")
    (data / "dir").symlink_to(tmp_path)
    for path in (data / "link", data / "dir/secret", data / "missing"):
        answer = server.generate(str(path))
        assert answer.status == 404
        assert "secret" not in answer.json["error"].replace(str(path), "")


def test_deleted_file_is_not_found(server, data):
    (data / "f").write_bytes(b"1")
    server.generate_and_wait(str(data / "f"))
    (data / "f").unlink()
    for route in ("/hash/", "/doc/"):
        answer = server.get(route, path=str(data / "f"))
        assert answer.status == 404
        assert answer.json["status"] == "Not found"
        assert "deleted" in answer.json["error"]


@pytest.mark.parametrize("query", ["", "?path=", "?path=/a&path=/b", "?" + "&".join(f"a{i}=1" for i in range(20))])
def test_bad_queries(stateless_server, query):
    for route in ("/hash/", "/doc/"):
        answer = stateless_server.request("GET", route + query)
        assert answer.status == 400
        assert answer.json["error"].startswith("cannot ")


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"", POST_JSON, 400),
        (b"{", POST_JSON, 400),
        (b"[]", POST_JSON, 400),
        (b'{"path": 7}', POST_JSON, 400),
        (b'{"path": ""}', POST_JSON, 400),
        (b'{"path": "\\ud800"}', POST_JSON, 400),
        (b'{"path": "/x", "more": 1}', POST_JSON, 400),
        (b'{"path": "/x"}', {"Content-Type": "text/plain"}, 415),
        (b'{"path": "' + b"x" * 100_000 + b'"}', POST_JSON, 413),
    ],
)
def test_bad_bodies(stateless_server, body, headers, status):
    answer = stateless_server.request("POST", "/generate", body, headers)
    assert answer.status == status
    assert answer.json["error"].startswith("cannot ")


@pytest.mark.parametrize(("method", "route", "status"), [("GET", "/nothing", 404), ("DELETE", "/hash/", 405)])
def test_unknown_routes_and_methods_answer_in_json(stateless_server, method, route, status):
    answer = stateless_server.request(method, route)
    assert answer.status == status
    assert answer.json["error"].startswith("cannot serve")


def test_files_of_the_bus_are_hashed_again(server_on_bus, nats, data, sha3):
    (data / "real file").write_bytes(b"real")
    path = str(data / "real file")
    # what stands on the bus is wrong on purpose: it must never come out again
    nats.change(paths={path: bytes(HASH_BYTES), str(data / "never was"): bytes(HASH_BYTES)})
    server = server_on_bus
    server.until(lambda: server.get("/health").json, lambda health: health["files_on_bus"] == 2)
    assert server.get("/hash/", path=path).json["sha3_hash"] == sha3(b"real")
    assert json.loads(server.get("/doc/", path=path).json["att_doc"]["payload"]["user_data"])["sha3_hash"] == sha3(
        b"real"
    )
    assert server.get("/hash/", path=str(data / "never was")).status == 404
    nats.change(paths={path: None})
    server.until(lambda: server.get("/hash/", path=path).status, lambda status: status == 404)


def test_what_the_bus_tells_of_is_attested_before_anybody_asks(server_on_bus, nats, data):
    server, path = server_on_bus, str(data / "f")
    (data / "f").write_bytes(b"content")
    (data / "g").write_bytes(b"changed since")
    digest = hashlib.sha3_512(b"content").digest()
    nats.change(paths={str(data / "g"): digest, path: digest})
    server.until(lambda: server.get("/health").json, lambda health: health["attested_ahead"] == 1)
    now = json.loads(server.get("/doc/", path=path, nonce="00" * 20).json["att_doc"]["payload"]["timestamp"])
    ahead = json.loads(server.get("/doc/", path=path).json["att_doc"]["payload"]["timestamp"])
    assert ahead < now
    (data / "f").write_bytes(b"another")
    nats.change(paths={path: hashlib.sha3_512(b"another").digest()})
    server.until(lambda: server.get("/health").json, lambda health: health["attested_ahead"] == 2)
    server.get("/hash/", path=str(data / "g"))
    assert server.get("/health").json["attested_ahead"] == 2  # what is not what the bus says is left to who asks


def test_store_that_was_lost_is_no_reason_to_miss_a_change(server_on_bus, nats, data):
    """The bucket is another one, and counts its revisions anew: the same number, another hash."""
    (data / "f").write_bytes(b"one")
    path, server = str(data / "f"), server_on_bus
    nats.change(paths={path: hashlib.sha3_512(b"one").digest()})
    server.until(lambda: server.get("/health").json, lambda health: health["attested_ahead"] == 1)
    (data / "f").write_bytes(b"two")
    nats.stop()
    shutil.rmtree(f"{nats.directory}/store")
    nats.start()
    nats.change(paths={path: hashlib.sha3_512(b"two").digest()})
    server.until(lambda: server.get("/health").json, lambda health: health["attested_ahead"] == 2)


def test_names_of_every_kind_come_over_the_bus(server_on_bus, nats, data, sha3):
    names = [b"with space", b"new\nline", b"\xff\xfe", "gr\u00fcn".encode(), "gru\u0308n".encode(), b"x" * 255]
    paths = {os.fsencode(data) + b"/" + name: name for name in names}
    for path, content in paths.items():
        with open(path, "wb") as out:
            out.write(content)
    nats.change(paths={path: hashlib.sha3_512(content).digest() for path, content in paths.items()})
    server = server_on_bus
    server.until(lambda: server.get("/health").json, lambda health: health["attested_ahead"] == len(names))
    for path, content in paths.items():
        found = server.request("GET", "/hash/?path=" + urllib.parse.quote(path, safe=""))
        assert (os.fsencode(found.json["file_path"]), found.json["sha3_hash"]) == (path, sha3(content))


def test_bus_that_comes_late_and_goes_and_comes_back(server_on_bus, nats, data):
    server = server_on_bus
    (data / "one").write_bytes(b"1")
    (data / "two").write_bytes(b"2")
    nats.change(paths={str(data / "one"): bytes(HASH_BYTES)})
    server.until(lambda: server.get("/hash/", path=str(data / "one")).status, lambda status: status == 200)
    nats.stop()
    server.until(lambda: server.get("/health").json["bus"], lambda bus: bus == "disconnected")
    assert server.get("/hash/", path=str(data / "one")).status == 200
    nats.start()
    nats.change(paths={str(data / "one"): None, str(data / "two"): bytes(HASH_BYTES)})
    server.until(lambda: server.get("/hash/", path=str(data / "two")).status, lambda status: status == 200)
    server.until(lambda: server.get("/hash/", path=str(data / "one")).status, lambda status: status == 404)
