# SPDX-License-Identifier: Apache-2.0
"""Feeds the decoder, the handshake and both ends of a connection with frames that are nearly right, as long as told.

    python -m pipeline.tests.channel_fuzzer --seconds 600 [--seed N]

Whatever comes in, the outcome must be one of ours: frames, or an EnclavekitError. What is queued must stay within the
named limits, what waits must wake up, and splitting the bytes otherwise must change nothing.
"""

from __future__ import annotations

import asyncio
import random
import sys

from enclavekit_core.errors import EnclavekitError
from enclavekit_pipeline.channel.mux import Connection
from enclavekit_pipeline.channel.stream import MAX_OTHER_FRAMES
from enclavekit_pipeline.wire.flow import MIN_FRAME_COST, WINDOW_BYTES
from enclavekit_pipeline.wire.frames import (
    DATA_KINDS,
    ENCLAVE_STREAMS,
    HEADER,
    HOST_STREAMS,
    MAX_PAYLOAD_BYTES,
    MAX_RECORDS_BYTES,
    RECORDS_BYTES,
    Frame,
    FrameDecoder,
    Kind,
    encode,
    encode_credit,
)
from enclavekit_pipeline.wire.handshake import ClientHandshake, ServerHandshake
from enclavekit_pipeline.wire.numbering import MAX_STREAMS
from enclavekit_pipeline.wire.requests import decode_request

from .fuzzing import main

KINDS = list(Kind)
PAYLOADS = (
    b"",
    b"{}",
    b'{"verb":"exec","argv":["true"]}',
    b'{"verb":"cp-out","path":"/x"}',
    b'{"code":"denied","message":"no"}',
    b'{"version":3,"nonce":"' + b"00" * 32 + b'"}',
    b'{"certificate":"","signature":""}',
    b'{"name":"x","version":3}',
    b"\x13\x00\x04\x00\x00",
)


class FakeWire:
    """Gives out bytes in pieces, takes everything, and remembers how much it was given."""

    def __init__(self, pieces: list[bytes]) -> None:
        self.pieces = pieces[::-1]
        self.sent_bytes = self.written_bytes = 0

    async def read(self, most: int) -> bytes:
        await asyncio.sleep(0)
        if not self.pieces:
            return b""
        piece = self.pieces.pop()
        if len(piece) > most:
            self.pieces.append(piece[most:])
        return piece[:most]

    async def fill(self, view: memoryview) -> int:
        filled = 0
        while filled < len(view) and (piece := await self.read(len(view) - filled)):
            view[filled : filled + len(piece)] = piece
            filled += len(piece)
        return filled

    def write(self, *parts: bytes) -> None:
        self.written_bytes += sum(map(len, parts))

    async def drain(self) -> None:
        pass

    async def flush(self) -> None:
        pass

    def is_closing(self) -> bool:
        return False

    def abort(self) -> None:
        self.pieces.clear()


def make_frame(rng: random.Random) -> bytes:
    """Return a frame that a peer might send, now and then one that it must not."""
    stream = rng.choice((0, 1, 1, 1, 2, 3, 0x7FFF, 0x8000, 0x8000, 0x8001, 0xFFFF))
    kind = rng.choice(KINDS)
    if kind in DATA_KINDS:
        if rng.random() < 0.15:
            return encode(Frame(kind, b"", stream, end=True))
        sizes = [0, 1, 300, 16384, MAX_PAYLOAD_BYTES]
        if kind is Kind.RECORDS:
            sizes += [MAX_PAYLOAD_BYTES + 1, RECORDS_BYTES, MAX_RECORDS_BYTES]
        return encode(Frame(kind, rng.randbytes(1) * rng.choice(sizes), stream))
    if kind is Kind.CREDIT and rng.random() < 0.8:
        return encode_credit(stream, rng.choice(sorted(DATA_KINDS)), rng.choice((0, 1, 2**18, 2**31, 2**32 - 1)))
    payload = rng.choice(PAYLOADS) if rng.random() < 0.7 else rng.randbytes(rng.randrange(40))
    return encode(Frame(kind, payload, stream))


def make_wire(rng: random.Random) -> bytes:
    """Return some frames, often after a regular beginning, sometimes damaged."""
    parts = [encode(Frame(Kind.OPEN, PAYLOADS[2], rng.choice((1, 0x8000))))] if rng.random() < 0.7 else []
    parts += [make_frame(rng) for _ in range(rng.randrange(40))]
    if rng.random() < 0.1:
        first = rng.choice((HOST_STREAMS, ENCLAVE_STREAMS))[0]
        parts += [encode(Frame(Kind.OPEN, b"{}", first + 10 + i)) for i in range(MAX_STREAMS + 2)]
    wire = bytearray(b"".join(parts))
    if wire and rng.random() < 0.4:
        for _ in range(rng.randrange(1, 4)):
            wire[rng.randrange(len(wire))] = rng.randrange(256)
    if wire and rng.random() < 0.2:
        del wire[rng.randrange(len(wire)) :]
    if rng.random() < 0.05:
        wire += HEADER.pack(rng.randrange(256), rng.randrange(4), rng.randrange(65536), rng.randrange(2**32))
    return bytes(wire)


def split(rng: random.Random, wire: bytes) -> list[bytes]:
    most = rng.choice((1, 7, 100, 70_000, 300_000)) if len(wire) < 5000 else rng.choice((5000, 70_000, 300_000))
    pieces, position = [], 0
    while position < len(wire):
        step = rng.randint(1, most)
        pieces.append(wire[position : position + step])
        position += step
    return pieces


def decode(rng: random.Random, pieces: list[bytes], large_bytes: int) -> tuple[list[Frame], str]:
    """Return the frames, and the error that ended them. Large payloads are read into their room, or fed; their memory
    is given back at once."""
    decoder, frames = FrameDecoder(), []
    decoder.large_bytes = large_bytes
    try:
        for piece in pieces:
            view = memoryview(piece)
            while view:
                if (room := decoder.room) is not None and rng.random() < 0.7:
                    part = view[: len(room)]
                    room[: len(part)] = part
                    found = decoder.filled(len(part))
                else:
                    part = view[: rng.randint(1, len(view))]
                    found = decoder.feed(part)
                view = view[len(part) :]
                for frame in found:
                    frames.append(Frame(frame.kind, bytes(frame.content), frame.stream, frame.end))
                    decoder.recycle(frame)
        decoder.feed_eof()
    except EnclavekitError as exc:
        return frames, str(exc)
    return frames, ""


def fuzz_decoder(rng: random.Random, wire: bytes) -> None:
    one, other = split(rng, wire), split(rng, wire)
    large_bytes = rng.choice((MAX_PAYLOAD_BYTES, MAX_RECORDS_BYTES))
    (frames, error), (again, same) = decode(rng, one, large_bytes), decode(rng, other, large_bytes)
    # a piece with an error in it gives none of its frames: how far one gets depends on the split, the error does not
    common = min(len(frames), len(again))
    assert frames[:common] == again[:common]
    assert error == same
    assert b"".join(map(encode, frames)) == wire[: sum(HEADER.size + len(frame.payload) for frame in frames)]
    for frame in frames:
        for step in (
            lambda frame=frame: decode_request(frame.payload),
            lambda frame=frame: ServerHandshake(bytes(32)).receive_hello(frame),
            lambda frame=frame: sent_hello().receive_evidence(frame),
        ):
            try:
                step()
            except EnclavekitError:
                pass


def sent_hello() -> ClientHandshake:
    handshake = ClientHandshake(bytes(32))
    handshake.hello()
    return handshake


async def fuzz_connection(rng: random.Random, wire: bytes) -> None:
    """Run one end against a peer that sends `wire`, with a stream of ours open and readers that sometimes stop."""
    opens = rng.choice((HOST_STREAMS, ENCLAVE_STREAMS))
    connection = Connection(FakeWire(split(rng, wire)), "fuzz", opens=opens)
    connection.accepting = connection.accepting or rng.random() < 0.5
    ours = await connection.open_stream()
    tasks = [asyncio.create_task(use(ours, rng)), asyncio.create_task(accept(connection, rng))]
    await connection.run()
    check_bounds(connection)
    await asyncio.wait_for(asyncio.gather(*tasks), 10)
    assert connection.has_ended
    assert isinstance(connection.failure(), EnclavekitError)


def check_bounds(connection: Connection) -> None:
    streams = list(connection._streams.values())
    assert len(streams) <= 2 * MAX_STREAMS
    for stream in streams:
        waiting = [frame for frame in stream._incoming if frame is not None]
        for kind in DATA_KINDS:
            cost = sum(max(f.size, MIN_FRAME_COST) for f in waiting if f.kind is kind and not f.end)
            assert cost <= WINDOW_BYTES
        assert sum(frame.kind not in DATA_KINDS for frame in waiting) <= MAX_OTHER_FRAMES + 1


async def use(stream, rng: random.Random) -> None:
    """Receive, pass on, send, close: until it ends, or until enough."""
    try:
        for _ in range(rng.randrange(30)):
            if rng.random() < 0.2:
                await stream.send_data(Kind.STDOUT, bytes(rng.choice((1, 100_000, 3_000_000))))
            frame = await stream.receive()
            if frame.kind in DATA_KINDS and rng.random() < 0.8:
                await stream.consumed(frame)
    except EnclavekitError:
        pass
    if rng.random() < 0.7:
        stream.close()
        stream.close()


async def accept(connection: Connection, rng: random.Random) -> None:
    tasks = []
    while (opened := await connection.opened.get()) is not None or not connection.has_ended:
        if opened is not None:
            tasks.append(asyncio.create_task(use(opened[0], rng)))
    await asyncio.gather(*tasks)


def run_one(seed: int) -> None:
    rng = random.Random(seed)
    wire = make_wire(rng)
    fuzz_decoder(rng, wire)
    asyncio.run(fuzz_connection(rng, wire))


if __name__ == "__main__":
    sys.exit(main(__doc__.partition("\n")[0], run_one))
