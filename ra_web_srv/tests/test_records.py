# SPDX-License-Identifier: Apache-2.0
"""Records of files: kept, read back, made anew before they end, and believed only if they are our enclave's."""

import asyncio
import dataclasses
import json
import time

import pytest
from enclavekit_attestation.binding import TlsIdentity
from enclavekit_attestation.document import parse_document
from enclavekit_core.bus import BUCKET_DOCUMENTS, SERVICE_RA, key_of_path
from enclavekit_core.bus_connection import Bus, list_entries, load_credentials
from enclavekit_core.bus_setup import credentials_path
from enclavekit_core.errors import RemoteProtocolError, VerificationError
from enclavekit_ra_web_srv import record_store
from enclavekit_ra_web_srv.evidence import Evidence
from enclavekit_ra_web_srv.nsm_worker import NsmWorker
from enclavekit_ra_web_srv.record_check import RecordCheck
from enclavekit_ra_web_srv.record_store import RecordStore
from enclavekit_ra_web_srv.records import decode_record, encode_record
from enclavekit_ra_web_srv.vrf_key import VrfKey

from .conftest import MODULE_ID, TIMEOUT_S, sha3

PATH, DIGEST = b"/data/f", bytes(range(64))
SUITE = "ECVRF-EDWARDS25519-SHA512-TAI"


def now_ms():
    return time.time_ns() // 1_000_000


@pytest.fixture
def evidence(nsm):
    worker = NsmWorker(nsm.path)
    yield Evidence(worker, TlsIdentity.generate("x"), VrfKey(SUITE), RecordStore(None))
    worker.close()


async def make(evidence, path=PATH):
    return await evidence.of_file(path, DIGEST, bytes(32))


async def test_record_survives_its_encoding(evidence):
    for path in (PATH, b"/data/\xff", b"/data/" + b"x" * 3000):
        record = await make(evidence, path)
        found = decode_record(path, encode_record(record))
        assert found == dataclasses.replace(record, expires_ms=0)
        check = RecordCheck(await evidence.fresh())
        assert check.check(found, now_ms()) == record


async def test_malformed_records_are_refused(evidence):
    good = json.loads(encode_record(await make(evidence)))
    bad = [b"", b"\xff", b"[]", b"1", b"[" * 100_000, b"x" * 50_000]
    bad += [json.dumps({name: value for name, value in good.items() if name != left}).encode() for left in good]
    bad += [json.dumps({**good, name: 7}).encode() for name in good]
    bad += [json.dumps({**good, "sha3_hash": "00"}).encode(), json.dumps({**good, "file_path": "/data/g"}).encode()]
    for data in bad:
        with pytest.raises(RemoteProtocolError):
            decode_record(PATH, data)


async def test_only_records_of_this_enclave_count(evidence, nsm):
    record = await make(evidence)
    check = RecordCheck(own := await evidence.fresh())
    assert check.check(record, now_ms()).expires_ms > now_ms() + 3600_000
    other_proof = await VrfKey(SUITE).prove(PATH, DIGEST)
    claims_other_file = dataclasses.replace(record, path=b"/data/g")
    wrong_root = NsmWorker(nsm.start("wrong-root"))
    stranger = Evidence(wrong_root, TlsIdentity.generate("x"), VrfKey(SUITE), RecordStore(None))
    for name, bad, moment_ms in (
        ("another content", dataclasses.replace(record, digest=bytes(64)), now_ms()),
        ("another file", claims_other_file, now_ms()),
        ("another proof", dataclasses.replace(record, proof=other_proof), now_ms()),
        ("a document about no file", dataclasses.replace(record, document=await evidence.of_tls_key(None)), now_ms()),
        ("a broken document", dataclasses.replace(record, document=record.document[:-1] + b"\0"), now_ms()),
        ("an expired one", record, now_ms() + 4 * 3600_000),
        ("another NSM's", await make(stranger), now_ms()),
    ):
        with pytest.raises(VerificationError):
            check.check(bad, moment_ms)
            pytest.fail(name)
    with pytest.raises(VerificationError, match="another enclave"):
        RecordCheck(dataclasses.replace(own, module_id=MODULE_ID + "0")).check(record, now_ms())
    wrong_root.close()


async def test_memory_is_bounded_and_records_are_made_anew_before_they_end(evidence, monkeypatch):
    monkeypatch.setattr(record_store, "MAX_HOT", 2)
    store = RecordStore(None)
    record = await make(evidence)
    for name in (b"/a", b"/b", b"/c"):
        store.put(dataclasses.replace(record, path=name))
    assert [store.peek(name, DIGEST) is not None for name in (b"/a", b"/b", b"/c")] == [False, True, True]
    assert store.peek(b"/c", bytes(64)) is None
    ending = dataclasses.replace(record, expires_ms=time.time_ns() // 1_000_000 + record_store.REFRESH_BEFORE_MS - 1)
    store.put(ending)
    assert store.peek(PATH, DIGEST) is None
    assert store.expiring() == [ending]
    assert await store.find(PATH, DIGEST) is None
    store.forget(b"/c")
    assert store.peek(b"/c", DIGEST) is None


async def test_document_that_is_about_to_end_is_made_anew(evidence, nsm):
    first = await evidence.of_file(PATH, DIGEST, None)
    assert await evidence.of_file(PATH, DIGEST, None) == first
    evidence._records.put(dataclasses.replace(first, expires_ms=now_ms()))
    second = await evidence.of_file(PATH, DIGEST, None)
    assert parse_document(second.document).timestamp_ms >= parse_document(first.document).timestamp_ms
    assert second.document != first.document
    assert second.proof == first.proof


async def test_nonces_are_random(evidence):
    """They are no function of key, path and hash: the same file again has another."""
    nonces = set()
    for _ in range(3):
        evidence._records.forget(PATH)
        document = parse_document((await evidence.of_file(PATH, DIGEST, None)).document)
        assert len(document.nonce) == 32
        nonces.add(document.nonce)
    assert len(nonces) == 3


def kept_on_bus(nats):
    """What stands in the bucket of documents."""

    async def read():
        bus = Bus(nats.url, SERVICE_RA, load_credentials(credentials_path(SERVICE_RA, nats.directory)))
        await asyncio.wait_for(bus.connect(), TIMEOUT_S)
        try:
            return await list_entries(await bus.bucket(BUCKET_DOCUMENTS, create=True))
        finally:
            await bus.close()

    return asyncio.run(read())


def change_on_bus(nats, path, value):
    async def write():
        bus = Bus(nats.url, SERVICE_RA, load_credentials(credentials_path(SERVICE_RA, nats.directory)))
        await asyncio.wait_for(bus.connect(), TIMEOUT_S)
        await (await bus.bucket(BUCKET_DOCUMENTS, create=True)).put(key_of_path(path.encode()), value)
        await bus.close()

    asyncio.run(write())


def test_records_are_read_back_after_a_restart_and_deletions_stay(start_server, nats, data):
    flags = ["--nats-url", nats.url, "--credentials", credentials_path(SERVICE_RA, nats.directory)]
    paths = [str(data / name) for name in ("kept", "forged", "gone")]
    for path in paths:
        with open(path, "w") as out:
            out.write("content")
    digest = bytes.fromhex(sha3(b"content"))
    server = start_server(*flags)
    nats.change(paths=dict.fromkeys(paths, digest))
    server.until(lambda: server.get("/health").json, lambda health: health["attested_ahead"] == 3)
    before = {path: server.get("/doc", path=path, view="hex").json for path in paths}
    keys = {key_of_path(path.encode()) for path in paths}
    server.until(lambda: kept_on_bus(nats).keys(), lambda kept: kept == keys)
    nats.change(paths={paths[2]: None})
    server.until(lambda: kept_on_bus(nats).keys(), lambda kept: key_of_path(paths[2].encode()) not in kept)
    assert server.get("/doc", path=paths[2]).status == 404
    server.stop()

    # what anybody may have written there meanwhile is not believed
    forged = {**json.loads(kept_on_bus(nats)[key_of_path(paths[1].encode())]), "att_doc": before[paths[0]]["att_doc"]}
    change_on_bus(nats, paths[1], json.dumps(forged).encode())
    again = start_server(*flags)
    again.until(lambda: again.get("/health").json, lambda health: health["files_on_bus"] == 2)
    found = again.until(lambda: again.get("/doc", path=paths[0], view="hex"), lambda answer: answer.status == 200).json
    assert found == before[paths[0]]
    assert found["vrf_public_key"] != again.get("/pubkeys").json["vrf_public_key"]  # which the document attests still
    assert again.get("/proof", path=paths[0]).json["vrf_proof"] == found["vrf_proof"]
    made = again.get("/doc", path=paths[1], view="hex").json
    assert made["att_doc"] not in (before[paths[1]]["att_doc"], before[paths[0]]["att_doc"])
    assert made["vrf_public_key"] == again.get("/pubkeys").json["vrf_public_key"]
    assert again.get("/doc", path=paths[2]).status == 404
