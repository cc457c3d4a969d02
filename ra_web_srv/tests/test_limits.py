# SPDX-License-Identifier: Apache-2.0
"""What is bounded stays bounded, and the loop is never held up."""

import asyncio
import os
import threading

import pytest
from enclavekit_core.errors import DeviceError
from enclavekit_core.file_hash import Unstable
from enclavekit_ra_web_srv import file_hasher, jobs, nsm_worker
from enclavekit_ra_web_srv.fair_queue import ClientFullError, QueueFullError
from enclavekit_ra_web_srv.file_hasher import FileHasher, HasherBusyError, NoSuchFileError, UnstableFileError
from enclavekit_ra_web_srv.jobs import Jobs, JobState, TooManyJobsError
from enclavekit_ra_web_srv.known_files import KnownFiles
from enclavekit_ra_web_srv.nsm_worker import NsmTimeoutError, NsmWorker
from enclavekit_ra_web_srv.paths import confine
from hypothesis import given
from hypothesis import strategies as st


def path_of(file, data):
    return confine(os.fsencode(file), (os.fsencode(data),))


@pytest.fixture
def hasher():
    made = FileHasher()
    yield made
    made.close()


@pytest.fixture
def gate(monkeypatch):
    """Holds up every hash until it is set."""
    opened, real = threading.Event(), file_hasher._hash

    def hash_when_open(path, is_given_up):
        opened.wait()
        return real(path, is_given_up)

    monkeypatch.setattr(file_hasher, "_hash", hash_when_open)
    yield opened
    opened.set()


async def test_many_who_ask_share_one_hash(data, hasher, monkeypatch):
    (data / "f").write_bytes(b"x")
    calls, real = [], file_hasher._hash
    monkeypatch.setattr(file_hasher, "_hash", lambda path, given_up: calls.append(path) or real(path, given_up))
    path = path_of(data / "f", data)
    first = await asyncio.gather(*(hasher.hash(path) for _ in range(50)))
    assert len({found.digest for found in first}) == 1
    assert await hasher.hash(path) == first[0]
    assert len(calls) == 1
    (data / "f").write_bytes(b"y")
    assert (await hasher.hash(path)).digest != first[0].digest
    assert len(calls) == 2


async def test_too_many_pending_hashes_are_refused(data, hasher, gate, monkeypatch):
    monkeypatch.setattr(file_hasher, "MAX_PENDING", 2)
    for name in "abc":
        (data / name).write_bytes(b"x")
    assert await hasher.hash(path_of(data / "a", data), 0) is None
    assert await hasher.hash(path_of(data / "b", data), 0) is None
    with pytest.raises(HasherBusyError):
        await hasher.hash(path_of(data / "c", data), 0)
    gate.set()
    assert await hasher.hash(path_of(data / "a", data)) is not None


async def test_file_that_never_stands_still(data, hasher, monkeypatch):
    (data / "f").write_bytes(b"x")
    attempts = []
    monkeypatch.setattr(file_hasher, "hash_open_file", lambda *_, **__: attempts.append(1) or Unstable.CHANGED)
    with pytest.raises(UnstableFileError):
        await hasher.hash(path_of(data / "f", data))
    assert len(attempts) == file_hasher.MAX_ATTEMPTS


async def test_cache_is_bounded(data, hasher, monkeypatch):
    monkeypatch.setattr(file_hasher, "MAX_CACHED", 3)
    for number in range(6):
        (data / str(number)).write_bytes(b"x")
        await hasher.hash(path_of(data / str(number), data))
    assert len(hasher._cache) == 3


async def test_too_many_jobs_are_refused(data, hasher, gate, monkeypatch):
    monkeypatch.setattr(jobs, "MAX_RUNNING", 2)
    (data / "f").write_bytes(b"x")
    made = Jobs(hasher, KnownFiles())
    started = [await made.start(path_of(data / "f", data)) for _ in range(2)]
    with pytest.raises(TooManyJobsError):
        await made.start(path_of(data / "f", data))
    gate.set()
    await asyncio.gather(*made._tasks)
    assert [job.state for job, _ in started] == [JobState.DONE, JobState.DONE]
    await made.close()


async def test_job_with_too_many_files_fails_and_says_so(data, hasher, monkeypatch):
    monkeypatch.setattr(jobs, "MAX_FILES", 3)
    for number in range(5):
        (data / str(number)).write_bytes(b"x")
    made = Jobs(hasher, KnownFiles())
    job, is_directory = await made.start(path_of(data, data))
    await asyncio.gather(*made._tasks)
    assert is_directory
    assert job.state is JobState.FAILED
    assert "more than 3 files" in job.error


async def test_job_on_what_is_not_there(data, hasher):
    with pytest.raises(NoSuchFileError):
        await Jobs(hasher, KnownFiles()).start(path_of(data / "missing", data))


def test_known_files_forget_the_oldest(monkeypatch):
    monkeypatch.setattr("enclavekit_ra_web_srv.known_files.MAX_GENERATED", 2)
    known = KnownFiles()
    for path in (b"/a", b"/b", b"/a", b"/c"):
        known.add_generated(path)
    assert [path in known for path in (b"/a", b"/b", b"/c")] == [True, False, True]


@given(st.lists(st.tuples(st.booleans(), st.sampled_from([b"/a", b"/a/b", b"/a/c", b"/ab", b"/b"]))))
def test_pages_are_of_what_is_known_in_order(steps):
    known, present = KnownFiles(), set()
    for add, path in steps:
        (known.add_generated if add else known.forget_generated)(path)
        (present.add if add else present.discard)(path)
        below = sorted(one for one in present if one == b"/a" or one.startswith(b"/a/"))
        assert known.page(b"/", b"", 10) == sorted(present)
        assert known.page(b"/a", b"", 10) == below
        assert known.page(b"/a", b"", 1) == below[:1]
        if below:
            assert known.page(b"/a", below[0], 10) == below[1:]


async def test_stuck_nsm_refuses_instead_of_waiting_for_ever(nsm, monkeypatch):
    monkeypatch.setattr(nsm_worker, "DEADLINE_S", 0.05)
    monkeypatch.setattr(nsm_worker, "MAX_QUEUED", 2)
    worker = NsmWorker(nsm.path)
    release = threading.Event()
    with pytest.raises(NsmTimeoutError):
        await worker.call(lambda client: release.wait())
    waiting = [asyncio.ensure_future(worker.call(lambda client: 1, number)) for number in range(2)]
    await asyncio.sleep(0)  # let both queue up
    with pytest.raises(QueueFullError):
        await worker.call(lambda client: 1, "another")
    monkeypatch.setattr(worker._queue, "_max_of_client", 1)
    with pytest.raises(ClientFullError):
        await worker.call(lambda client: 1, 0)
    assert worker.counters.refused == 2
    release.set()
    await asyncio.gather(*waiting, return_exceptions=True)
    monkeypatch.setattr(nsm_worker, "DEADLINE_S", 30)
    assert (await worker.call(lambda client: client.describe_nsm())).digest == "SHA384"
    worker.close()


async def test_nsm_is_opened_anew_after_an_error(nsm):
    worker = NsmWorker(nsm.path)

    def fail(client):
        client.close()
        return client.describe_nsm()

    with pytest.raises(DeviceError):
        await worker.call(fail)
    assert (await worker.call(lambda client: client.describe_nsm())).digest == "SHA384"
    worker.close()


def test_nsm_that_is_not_there(tmp_path):
    with pytest.raises(DeviceError):
        NsmWorker(str(tmp_path / "nothing"))


async def test_large_file_does_not_hold_up_the_end(data, monkeypatch):
    """Its hash is given up at the next piece; else this would take as long as reading a terabyte of nothing."""
    with open(data / "large", "wb") as out:
        out.truncate(2**40)
    hasher = FileHasher()
    assert await hasher.hash(path_of(data / "large", data), 0.01) is None
    hasher.close()
    await asyncio.to_thread(hasher._hash_pool.shutdown, wait=True)
