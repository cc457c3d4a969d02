# SPDX-License-Identifier: Apache-2.0
"""The parts that decide, without a server around them."""

import dataclasses
import json
import threading

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from ecvrf import SUITES
from enclavekit_core.errors import ConfigError, InputError
from enclavekit_ra_web_srv import requests
from enclavekit_ra_web_srv.asked import DocumentQuery, GenerateBody
from enclavekit_ra_web_srv.claims import MAX_USER_DATA_BYTES, encode_alpha, encode_file_claim
from enclavekit_ra_web_srv.fair_queue import ClientFullError, FairQueue, QueueFullError
from enclavekit_ra_web_srv.handlers.evidence import point_to_key
from enclavekit_ra_web_srv.paths import PathRefusedError, confine, parse_roots
from enclavekit_ra_web_srv.vrf_key import NAMES_OF_RUST, VrfKey
from hypothesis import given
from hypothesis import strategies as st

ROOTS = parse_roots(["/data", "/srv//files/"])
DIGEST = bytes(range(64))


@pytest.mark.parametrize(
    ("path", "confined"),
    [
        (b"/data", (b"/data", b"/data", ())),
        (b"/data/", (b"/data", b"/data", ())),
        (b"//data//a/./b/", (b"/data/a/b", b"/data", (b"a", b"b"))),
        (b"/srv/files/x", (b"/srv/files/x", b"/srv/files", (b"x",))),
        (b"/data/..x", (b"/data/..x", b"/data", (b"..x",))),
        (b"/data/\xff", (b"/data/\xff", b"/data", (b"\xff",))),
    ],
)
def test_confine_table(path, confined):
    found = confine(path, ROOTS)
    assert (found.path, found.root, found.parts) == confined


@pytest.mark.parametrize("path", [b"", b"data/x", b"/", b"/datax", b"/srv", b"/data/../etc", b"/data/..", b"/data/a\0"])
def test_confine_refuses(path):
    with pytest.raises(PathRefusedError):
        confine(path, ROOTS)


@given(st.lists(st.sampled_from([b"data", b"..", b".", b"", b"a", b"srv", b"files"])))
def test_what_confine_lets_through_is_below_a_root(parts):
    path = b"/" + b"/".join(parts)
    try:
        found = confine(path, ROOTS)
    except PathRefusedError:
        return
    assert not {b"..", b".", b""} & set(found.parts)
    assert found.path == b"/".join((found.root, *found.parts))
    assert found.root in ROOTS


def test_root_of_everything_holds_everything():
    assert confine(b"/etc/passwd", parse_roots(["/"])).parts == (b"etc", b"passwd")


@pytest.mark.parametrize("roots", [[], ["data"], ["/a/../b"]])
def test_bad_roots(roots):
    with pytest.raises(ConfigError):
        parse_roots(roots)


def test_claim_is_compact_json_in_this_order():
    expected = '{"file_path":"/data/grün \\"x\\"","sha3_hash":"%s"}' % DIGEST.hex()  # noqa: UP031 - braces
    assert encode_alpha('/data/grün "x"'.encode(), DIGEST) == expected.encode()
    claim = expected[:-1] + ',"vrf_proof":"00ff","vrf_cipher_suite":"S"}'
    assert encode_file_claim('/data/grün "x"'.encode(), DIGEST, b"\0\xff", "S") == claim.encode()


@given(st.binary(max_size=600))
def test_claim_fits_and_names_the_path(path):
    claim = encode_file_claim(path, DIGEST, bytes(81), "S" * 35)  # the longest proof, the longest name of a suite
    assert len(claim) <= MAX_USER_DATA_BYTES
    fields = json.loads(claim)
    assert fields["sha3_hash"] == DIGEST.hex()
    assert len(fields) == 4
    assert fields.get("file_path", "").encode() == path or len(fields["file_path_sha3_256"]) == 64


@given(st.text(max_size=50))
def test_parse_query_never_fails_in_another_way(raw):
    try:
        fields = requests.parse_query(raw, DocumentQuery)
    except InputError:
        return
    assert fields.path


@given(st.one_of(st.binary(max_size=200), st.just(b"[" * 50_000)))
def test_parse_generate_never_fails_in_another_way(body):
    with pytest.raises(InputError):
        requests.parse_body(body, GenerateBody)


@pytest.mark.parametrize(
    ("accept", "expected"),
    [("application/cbor", True), ("text/html, Application/CBOR;q=0.9", True), ("*/*", False), ("", False)],
)
def test_accepts_cbor(accept, expected):
    assert requests.accepts_cbor(accept) is expected


@pytest.mark.parametrize("name", sorted([*SUITES, *NAMES_OF_RUST, "SECT163K1_SHA256_TAI", ""]))
async def test_every_suite_that_is_offered_works(name):
    suite = SUITES.get(NAMES_OF_RUST.get(name, name))
    if suite is None or suite.draft_05:
        with pytest.raises(ConfigError, match="ECVRF-P256-SHA256-TAI"):
            VrfKey(name)
        return
    keys = [VrfKey(name), VrfKey(name)]
    assert keys[0].public_key != keys[1].public_key
    proof = await keys[0].prove(b"/f", DIGEST)
    assert suite.verify(keys[0].public_key, encode_alpha(b"/f", DIGEST), proof.proof)
    assert await keys[0].prove(b"/f", DIGEST) is proof
    spki = point_to_key(suite, proof.public_key).public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert proof.public_key[-32:] in spki  # the x coordinate, or the whole point of edwards25519


async def test_proofs_are_made_where_no_request_waits(monkeypatch):
    key, threads = VrfKey("ECVRF-EDWARDS25519-SHA512-TAI"), []
    prove = key.suite.prove

    def note_thread(*arguments):
        threads.append(threading.current_thread())
        return prove(*arguments)

    monkeypatch.setattr(key, "suite", dataclasses.replace(key.suite))
    object.__setattr__(key.suite, "prove", note_thread)
    await key.prove(b"/f", DIGEST)
    assert threads and threading.main_thread() not in threads
    key.close()


@given(st.lists(st.one_of(st.none(), st.sampled_from("abc")), max_size=60))
def test_clients_take_turns(steps):
    """A client's items come in order; nobody waits for more than one item of each other client."""
    queue, waiting, served, limits = FairQueue("it", 8, 4), {}, [], (8, 4)
    for number, client in enumerate(steps):
        if client is None:
            if not waiting:
                with pytest.raises(IndexError):
                    queue.pop()
                continue
            owner, item = queue.pop()
            assert waiting[owner].pop(0) == item
            if not waiting[owner]:
                del waiting[owner]
            served.append((owner, set(waiting)))
            continue
        total, own = sum(map(len, waiting.values())), len(waiting.get(client, ()))
        if own >= limits[1]:
            with pytest.raises(ClientFullError):
                queue.push(client, (client, number))
        elif total >= limits[0]:
            with pytest.raises(QueueFullError):
                queue.push(client, (client, number))
        else:
            queue.push(client, (client, number))
            waiting.setdefault(client, []).append(number)
            served.append(None)
        assert len(queue) == sum(map(len, waiting.values()))
    # while another waited, no client was served twice in a row
    for (first, left), second in zip(
        [entry for entry in served if entry], [entry for entry in served if entry][1:], strict=False
    ):
        assert second[0] != first or not (left - {first})
