# SPDX-License-Identifier: Apache-2.0
"""The shell around the machines of copies: who learns what when either side fails, over a stream in memory."""

import asyncio
import os

import pytest
from enclavekit_core.errors import InputError, RemoteProtocolError, TransportError
from enclavekit_pipeline.channel.stream import RequestRefused, StreamClosed
from enclavekit_pipeline.channel.tree_sink import TreeSink, WriteOptions
from enclavekit_pipeline.channel.tree_source import ReadOptions, TreeSource
from enclavekit_pipeline.channel.tree_transfer import receive_tree, send_tree
from enclavekit_pipeline.wire.copy_messages import Done
from enclavekit_pipeline.wire.frames import Frame, Kind
from enclavekit_pipeline.wire.messages import Failure, encode_payload
from enclavekit_pipeline.wire.tree_records import Entry, EntryType, encode_record


class Half:
    """One end of a stream; an exception in its queue is what `receive` raises from then on."""

    def __init__(self):
        self.incoming = asyncio.Queue()
        self.other = None
        self.broken = None

    async def send(self, kind, payload=b""):
        await self.send_frame(Frame(kind, payload, 1))

    async def send_data(self, kind, data):
        if data:
            await self.send_frame(Frame(kind, data, 1))

    async def send_end(self, kind):
        await self.send_frame(Frame(kind, b"", 1, end=True))

    async def send_frame(self, frame):
        if self.broken:
            raise self.broken
        await asyncio.sleep(0)
        self.other.incoming.put_nowait(frame)

    async def consumed(self, frame):
        pass

    def has_next(self, kind):
        return not self.incoming.empty() and getattr(self.incoming._queue[0], "kind", None) is kind

    async def gather(self, least, patience_s):
        await asyncio.sleep(0)

    def break_with(self, error):
        self.broken = error
        self.incoming.put_nowait(error)


async def receive(half, *wanted):
    item = await half.incoming.get()
    if isinstance(item, Exception):
        half.incoming.put_nowait(item)
        raise item
    if item.kind not in wanted:
        raise RemoteProtocolError(f"{item.kind.name} is not due")
    return item


async def at_once(function, *args):
    await asyncio.sleep(0)
    return function(*args)


@pytest.fixture
def halves():
    one, two = Half(), Half()
    one.other, two.other = two, one
    return one, two


@pytest.fixture
def ends(tmp_path):
    (tmp_path / "tree").mkdir()
    for name in ("a", "b"):
        (tmp_path / "tree" / name).write_bytes(os.urandom(700_000))
    source = TreeSource(os.open(tmp_path / "tree", os.O_RDONLY), "source", ReadOptions(delta=True))
    sink = TreeSink(os.open(tmp_path, os.O_RDONLY), b"copy", "target", WriteOptions(0o777, delta=True))
    yield source, sink
    source.close()
    sink.close()


async def test_both_confirm_the_same(halves, ends, tmp_path):
    sent, received = await asyncio.gather(
        send_tree(halves[0], ends[0], at_once, receive), receive_tree(halves[1], ends[1], at_once, receive)
    )
    assert sent == received
    assert sent.entries == 3
    assert (tmp_path / "copy/a").read_bytes() == (tmp_path / "tree/a").read_bytes()


@pytest.mark.parametrize("error", [TransportError("keep", "x", "cut"), StreamClosed("closed")])
@pytest.mark.parametrize("frames", [0, 1, 2])
async def test_receiver_learns_that_the_sender_has_left(halves, ends, error, frames):
    """Also if that comes together with the last that it sent."""
    data = ends[0].next_batch([]).data
    for start in range(frames):
        halves[1].incoming.put_nowait(Frame(Kind.RECORDS, data[10 * start : 10 * start + 10], 1))
    halves[1].break_with(error)
    with pytest.raises(type(error)):
        async with asyncio.timeout(20):
            await receive_tree(halves[1], ends[1], at_once, receive)


async def test_sender_learns_why_the_receiver_has_left(halves, ends):
    refusal = RequestRefused(Failure(code="input", message="cannot copy: the disk is full"))
    halves[0].break_with(StreamClosed("closed"))
    halves[0].incoming.get_nowait()
    halves[0].incoming.put_nowait(refusal)
    with pytest.raises(RequestRefused, match="full"):
        await send_tree(halves[0], ends[0], at_once, receive)


async def test_sender_waits_for_answers_no_longer_than_there_is_somebody(halves, ends):
    sending = asyncio.create_task(send_tree(halves[0], ends[0], at_once, receive))
    assert (await receive(halves[1], Kind.RECORDS)).payload
    halves[0].incoming.put_nowait(TransportError("keep", "x", "cut"))
    with pytest.raises(TransportError):
        async with asyncio.timeout(20):
            await sending


async def test_what_is_confirmed_is_compared(halves, ends):
    halves[0].incoming.put_nowait(Frame(Kind.DONE, encode_payload(Done(digest="00" * 32, size=1)), 1))
    with pytest.raises(RemoteProtocolError):
        await send_tree(halves[0], ends[0], at_once, receive)


async def test_what_the_sender_says_of_itself_is_compared(halves, ends):
    root = encode_record(Entry(EntryType.DIRECTORY, b""))
    halves[1].incoming.put_nowait(Frame(Kind.RECORDS, root, 1))
    halves[1].incoming.put_nowait(Frame(Kind.RECORDS, b"", 1, end=True))
    halves[1].incoming.put_nowait(Frame(Kind.DONE, encode_payload(Done(digest="00" * 32, size=0, entries=1)), 1))
    with pytest.raises(RemoteProtocolError, match="not what was sent"):
        await receive_tree(halves[1], ends[1], at_once, receive)


async def test_own_failure_is_told_as_it_is(halves, ends, tmp_path):
    (tmp_path / "copy").write_bytes(b"a file is in the way")
    sending = asyncio.create_task(send_tree(halves[0], ends[0], at_once, receive))
    with pytest.raises(InputError, match="in the way"):
        await receive_tree(halves[1], ends[1], at_once, receive)
    sending.cancel()
    await asyncio.gather(sending, return_exceptions=True)
    assert (tmp_path / "copy").read_bytes() == b"a file is in the way"
