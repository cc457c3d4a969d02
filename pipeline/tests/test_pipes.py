# SPDX-License-Identifier: Apache-2.0
"""Our ends of a command's pipes: nothing lost at the end, nothing waited for that is not there."""

import asyncio
import os

import pytest
from enclavekit_pipeline.enclave.pipes import InputPipe, OutputPipe


@pytest.fixture
def pair():
    read, write = os.pipe()
    yield read, write
    for descriptor in (read, write):
        try:
            os.close(descriptor)
        except OSError:
            pass  # closed by the pipe under test


async def test_output_is_read_to_its_end(pair):
    pipe = OutputPipe(pair[0])
    reading = asyncio.create_task(pipe.read())
    await asyncio.sleep(0)
    os.write(pair[1], b"abc")
    assert await reading == b"abc"
    os.close(pair[1])
    assert await pipe.read() == b""
    pipe.close()
    pipe.close()


async def test_after_the_command_only_what_is_there_is_read(pair):
    pipe = OutputPipe(pair[0])
    os.write(pair[1], b"last words")
    pipe.finish()  # somebody else holds the other end still
    assert await pipe.read() == b"last words"
    assert await pipe.read() == b""
    pipe.close()


async def test_end_of_the_command_wakes_up_who_waits(pair):
    pipe = OutputPipe(pair[0])
    reading = asyncio.create_task(pipe.read())
    await asyncio.sleep(0)
    pipe.finish()
    assert await reading == b""
    pipe.close()


async def test_somebody_who_writes_on_is_not_listened_to_for_ever(pair):
    pipe = OutputPipe(pair[0])
    os.set_blocking(pair[1], False)
    pipe.finish()
    total = 0
    while True:
        os.write(pair[1], bytes(4096))
        if not (data := await pipe.read()):
            break
        total += len(data)
    assert total < 1_000_000
    pipe.close()


async def test_input_waits_for_room_and_ends_with_its_reader(pair):
    pipe = InputPipe(pair[1])
    writing = asyncio.create_task(pipe.write(bytes(3_000_000)))
    got = 0
    while got < 3_000_000:
        got += len(await asyncio.to_thread(os.read, pair[0], 65536))
    await writing
    os.close(pair[0])
    with pytest.raises(BrokenPipeError):
        await pipe.write(b"x")
    pipe.close()
