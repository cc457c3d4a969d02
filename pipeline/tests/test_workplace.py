# SPDX-License-Identifier: Apache-2.0
"""What runs in a thread runs to its end, whoever is cancelled meanwhile."""

import asyncio
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from enclavekit_pipeline.enclave.root import Root
from enclavekit_pipeline.enclave.workplace import Workplace


@pytest.fixture
def place(tmp_path):
    root = Root(str(tmp_path))
    with ThreadPoolExecutor(1) as threads:
        yield Workplace(root, root, threads)
    os.close(root.descriptor)


async def test_a_job_that_waits_for_its_turn_is_not_lost(place):
    busy, done = threading.Event(), []
    first = asyncio.ensure_future(place.in_thread(busy.wait))
    second = asyncio.ensure_future(place.in_thread(done.append, 1))  # the only thread is taken: this one has to queue
    await asyncio.sleep(0)
    second.cancel()
    busy.set()
    with pytest.raises(asyncio.CancelledError):
        await second
    assert done == [1]
    assert await first


async def test_a_cancellation_waits_for_the_thread(place):
    started, release, order = threading.Event(), threading.Event(), []

    def work():
        started.set()
        release.wait()
        order.append("thread")

    task = asyncio.ensure_future(place.in_thread(work))
    await asyncio.to_thread(started.wait)
    task.cancel()
    asyncio.get_running_loop().call_later(0.05, release.set)
    with pytest.raises(asyncio.CancelledError):
        await task
    order.append("caller")
    assert order == ["thread", "caller"]
