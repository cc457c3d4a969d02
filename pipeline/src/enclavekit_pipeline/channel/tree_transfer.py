# SPDX-License-Identifier: Apache-2.0
"""Carries the records of a copy over a stream, answers the other way: the asyncio shell of `tree_source` and
`tree_sink`, the same on both ends.

The disk and the wire work at the same time: one batch is read while the one before is sent, and what arrives while a
portion is written is the next portion. Credit bounds what waits.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, Protocol

from enclavekit_core.errors import RemoteProtocolError, TransportError

from enclavekit_pipeline.channel.batch import Batch
from enclavekit_pipeline.channel.mux import Stream
from enclavekit_pipeline.wire.copy_messages import Done
from enclavekit_pipeline.wire.frames import RECORDS_BYTES, Frame, Kind
from enclavekit_pipeline.wire.messages import decode_payload, encode_payload
from enclavekit_pipeline.wire.tree_receiver import TreeReceiver
from enclavekit_pipeline.wire.tree_sender import TreeSender

PORTION_BYTES = 3 * RECORDS_BYTES  # of eight that credit lets come: handing them to a thread costs as much as 64 KiB
FLOW_BYTES = 128 * 1024  # that came at once: the sender does not wait for us
PATIENCE_S = 0.002
LAST_WORDS_S = 1.0  # for what the other side has said before it left to arrive
Receive = Callable[..., Awaitable[Frame]]
"""`receive(stream, *kinds)`: the next frame, or the other side's refusal as an exception."""
InThread = Callable[..., Awaitable[Any]]
"""Runs a function that blocks, to its end whatever happens."""


class Source(Protocol):
    sender: TreeSender

    def next_batch(self, answers: list[bytes]) -> Batch: ...


class Sink(Protocol):
    receiver: TreeReceiver

    def take(self, parts: Sequence[bytes | memoryview]) -> bytes: ...
    def finish(self) -> None: ...


async def send_tree(
    stream: Stream, source: Source, in_thread: InThread, receive: Receive, watch: Callable[[], None] = lambda: None
) -> Done:
    """Send all of `source`, and return what its receiver confirms. `watch` is called now and then.

    Raises: InputError, RemoteProtocolError, TransportError; what the other side says counts before what we see.
    """
    answers: list[Frame] = []
    answered = asyncio.Event()
    confirmed: asyncio.Future[Done] = asyncio.get_running_loop().create_future()

    async def listen() -> None:
        try:
            while (frame := await receive(stream, Kind.DONE, Kind.ANSWERS)).kind is Kind.ANSWERS:
                answers.append(frame)
                answered.set()
            confirmed.set_result(decode_payload(Done, frame.payload))
        finally:
            answered.set()

    async def send() -> None:
        batch = Batch(b"", waits=True)
        while not batch.finished:
            if batch.waits:
                await answered.wait()
                if listening.done():
                    return
            answered.clear()
            batch = await next_batch(source, answers, stream, in_thread)
            # the next one is read while this one is sent, unless that needs answers first
            while not (batch.waits or batch.finished):
                async with ahead(next_batch(source, answers, stream, in_thread)) as following:
                    await stream.send_data(Kind.RECORDS, batch.data)
                    watch()
                    batch = await following
            await stream.send_data(Kind.RECORDS, batch.data)
            watch()
        await stream.send_end(Kind.RECORDS)
        await stream.send(Kind.DONE, encode_payload(source.sender.done))

    listening = asyncio.create_task(listen())
    answered.set()  # the first batch waits for nothing
    sending = asyncio.create_task(send())
    try:
        await asyncio.wait({listening, sending}, return_when=asyncio.FIRST_COMPLETED)
        if not listening.done():
            await _unless_refused(sending, listening)
        await listening
        done = confirmed.result()
        if not sending.done() or sending.exception() or done != source.sender.done:
            raise RemoteProtocolError("cannot copy: the other side confirms another content")
        return done
    finally:
        await _end(sending, listening)


async def _unless_refused(sending: asyncio.Task[None], listening: asyncio.Task[None]) -> None:
    """Wait for the sender; if it fails because the other side has left, let that say why."""
    try:
        await sending
    except (TransportError, RemoteProtocolError):
        await asyncio.wait({listening}, timeout=LAST_WORDS_S)
        if listening.done():
            return
        raise


async def next_batch(source: Source, answers: list[Frame], stream: Stream, in_thread: InThread) -> Batch:
    taken = answers[:]
    answers.clear()
    batch: Batch = await in_thread(source.next_batch, [frame.payload for frame in taken])
    for frame in taken:
        await stream.consumed(frame)
    return batch


async def receive_tree(
    stream: Stream, sink: Sink, in_thread: InThread, receive: Receive, watch: Callable[[], None] = lambda: None
) -> Done:
    """Receive all into `sink`, and confirm it. `watch` is called now and then.

    Raises: InputError, RemoteProtocolError, TransportError.
    """
    taken: list[Frame] = []
    while not (taken and taken[-1].end):
        if sum(frame.size for frame in taken) >= FLOW_BYTES:
            await stream.gather(PORTION_BYTES, PATIENCE_S)
        taken = [await receive(stream, Kind.RECORDS)]
        while not taken[-1].end and stream.has_next(Kind.RECORDS):
            taken.append(await receive(stream, Kind.RECORDS))
        answers = await in_thread(sink.take, [frame.content for frame in taken])
        if answers:
            await stream.send_data(Kind.ANSWERS, answers)
        for frame in taken:
            await stream.consumed(frame)
        watch()
    expected = decode_payload(Done, (await receive(stream, Kind.DONE)).payload)
    if expected != sink.receiver.done:
        raise RemoteProtocolError("cannot copy: what arrived is not what was sent")
    await in_thread(sink.finish)
    await stream.send(Kind.DONE, encode_payload(expected))
    return expected


@contextlib.asynccontextmanager
async def ahead(step: Awaitable[Batch]) -> AsyncIterator[asyncio.Future[Batch]]:
    """Run `step` beside the block, and not beyond it."""
    task = asyncio.ensure_future(step)
    try:
        yield task
    finally:
        await _end(task)


async def _end(*tasks: asyncio.Future[Any]) -> None:
    for task in tasks:
        task.cancel()
    if not all(task.done() for task in tasks):
        await asyncio.wait(tasks)
    for task in tasks:
        if not task.cancelled():
            task.exception()  # whoever waits for it knows it; nobody is to be told that nobody does
