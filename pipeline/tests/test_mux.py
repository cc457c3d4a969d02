# SPDX-License-Identifier: Apache-2.0
"""Two ends of a connection over a socket pair: streams of both sides, their ends, credit, limits, signs of life."""

import asyncio
import contextlib
import socket

import pytest
from enclavekit_attestation.binding import TlsIdentity
from enclavekit_core import tls
from enclavekit_core.errors import RemoteProtocolError, TransportError
from enclavekit_pipeline.channel import mux
from enclavekit_pipeline.channel.mux import Connection, RequestRefused, StreamClosed
from enclavekit_pipeline.channel.tls_socket import TlsSocket
from enclavekit_pipeline.wire import liveness
from enclavekit_pipeline.wire.flow import WINDOW_BYTES
from enclavekit_pipeline.wire.frames import (
    ENCLAVE_STREAMS,
    HOST_STREAMS,
    RECORDS_BYTES,
    Frame,
    Kind,
    encode,
    encode_credit,
)
from enclavekit_pipeline.wire.numbering import MAX_STREAMS

WAIT_S = 20
IDENTITY = TlsIdentity.generate("pipeline")


@contextlib.asynccontextmanager
async def pair(run_enclave=True):
    """Yield (host's end, enclave's end)."""
    ours, theirs = socket.socketpair()
    context = tls.server_context(IDENTITY.certificate_pem, IDENTITY.key_pem)
    wires = await asyncio.gather(
        TlsSocket.connect(ours, tls.attested_client_context(), "enclave"), TlsSocket.accept(theirs, context)
    )
    host, enclave = Connection(wires[0], "enclave"), Connection(wires[1], "host", opens=ENCLAVE_STREAMS)
    tasks = [asyncio.create_task(end.run()) for end in ((host, enclave) if run_enclave else (host,))]
    try:
        async with asyncio.timeout(WAIT_S):
            yield host, enclave
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for end in (host, enclave):
            end.abort()


async def opened(sender, receiver, payload=b"{}"):
    """Return both ends of a new stream."""
    stream = await sender.open_stream()
    await stream.send(Kind.OPEN, payload)
    taken, frame = await receiver.opened.get()
    assert frame.payload == payload
    return stream, taken


async def test_both_sides_open_streams_with_numbers_of_their_own():
    async with pair() as (host, enclave):
        host.accepting = True
        ours, theirs = await opened(host, enclave)
        back, taken = await opened(enclave, host)
        assert ours.number == theirs.number == HOST_STREAMS[0]
        assert back.number == taken.number == ENCLAVE_STREAMS[0]
        for sender, receiver in ((ours, theirs), (back, taken)):
            await sender.send_data(Kind.STDOUT, b"data")
            assert (await receiver.receive()).payload == b"data"


async def test_closed_stream_gives_what_was_sent_then_an_end():
    async with pair() as (host, enclave):
        ours, theirs = await opened(host, enclave)
        await theirs.send_data(Kind.STDOUT, b"last words")
        theirs.close()
        assert (await ours.receive()).payload == b"last words"
        for _ in range(2):
            with pytest.raises(StreamClosed):
                await ours.receive()
        with pytest.raises(StreamClosed):
            await ours.send(Kind.SIGNAL, b"\x0f")
        assert ours.closed_by_peer.is_set()
        assert not host.has_ended


async def test_sender_without_credit_learns_of_the_close_and_of_the_reason():
    async with pair() as (host, enclave):
        ours, theirs = await opened(host, enclave)
        sending = asyncio.create_task(ours.send_data(Kind.STDIN, bytes(2 * WINDOW_BYTES)))
        for _ in range(WINDOW_BYTES // 65536):
            await theirs.receive()
        await theirs.send(Kind.ERROR, b'{"code":"denied","message":"cannot do that: no"}')
        theirs.close()
        with pytest.raises(RequestRefused, match="cannot do that: no"):
            await sending


async def test_number_is_free_only_when_both_have_closed():
    async with pair() as (host, enclave):
        streams = [await opened(host, enclave) for _ in range(MAX_STREAMS)]
        waiting = asyncio.create_task(host.open_stream())
        streams[0][0].close()
        await host.ping()
        assert not waiting.done()  # the enclave has not closed it yet
        await enclave.send(Frame(Kind.STDOUT, b"too late, and dropped", 1))
        streams[0][1].close()
        stream = await waiting
        assert stream.number == HOST_STREAMS[MAX_STREAMS]  # numbers come in turn
        await stream.send(Kind.OPEN, b"{}")  # room on the other side, too
        await host.ping()


async def test_half_close_lets_open_streams_go_on():
    async with pair() as (host, enclave):
        ours, theirs = await opened(host, enclave)
        host.finish()
        assert await enclave.opened.get() is None
        assert enclave.peer_finished
        await theirs.send_data(Kind.STDOUT, b"still")
        assert (await ours.receive()).payload == b"still"
        assert not enclave.has_ended


async def test_large_records_arrive_as_they_were_sent_from_memory_that_changes():
    """More than the credit, from a buffer that is filled anew as soon as `send_data` lets it go."""
    sizes = [1, 16376, 16377, 70_000, 300_000, 1_048_544, 3_000_000]
    async with pair() as (host, enclave):
        ours, theirs = await opened(host, enclave)

        async def send():
            buffer = bytearray(max(sizes))
            for number, size in enumerate(sizes):
                buffer[:size] = bytes([number + 1]) * size
                await ours.send_data(Kind.RECORDS, memoryview(buffer)[:size])
            await ours.send_end(Kind.RECORDS)

        async def receive():
            got = bytearray()
            while not (frame := await theirs.receive()).end:
                assert frame.size <= RECORDS_BYTES
                got += frame.content
                await theirs.consumed(frame)
            return got

        _, got = await asyncio.gather(send(), receive())
        assert enclave._decoder._spare
        theirs.close()
        assert not enclave._decoder._spare  # an idle connection holds nothing
        assert got == b"".join(bytes([number + 1]) * size for number, size in enumerate(sizes))


async def test_cut_connection_ends_a_sender_of_much_and_its_receiver():
    async with pair() as (host, enclave):
        ours, theirs = await opened(host, enclave)
        sending = asyncio.create_task(ours.send_data(Kind.RECORDS, memoryview(bytearray(WINDOW_BYTES))))
        await theirs.receive()
        host.abort()
        with pytest.raises(TransportError):
            await sending
        with pytest.raises((TransportError, RemoteProtocolError)):  # in the middle of a frame, or between two
            while True:
                await theirs.receive()


async def test_gathering_ends_with_enough_with_an_end_and_with_patience():
    async with pair() as (host, enclave):
        ours, theirs = await opened(host, enclave)
        gathering = asyncio.create_task(theirs.gather(100_000, WAIT_S))
        await ours.send_data(Kind.RECORDS, bytes(60_000))
        await host.ping()
        assert not gathering.done() and theirs.has_next(Kind.RECORDS) and not theirs.has_next(Kind.DONE)
        await ours.send_data(Kind.RECORDS, bytes(60_000))
        await gathering
        await theirs.gather(100_000, WAIT_S)  # they lie there still
        await theirs.gather(1_000_000, 0.001)
        gathering = asyncio.create_task(theirs.gather(1_000_000, WAIT_S))
        await ours.send_end(Kind.RECORDS)
        await gathering
        while not (await theirs.receive()).end:
            pass
        assert not theirs.has_next(Kind.RECORDS)
        gathering = asyncio.create_task(theirs.gather(1, WAIT_S))
        ours.close()
        await gathering


async def test_pings_of_one_who_does_not_read_are_answered_a_few_times_only():
    async with pair(run_enclave=False) as (host, enclave):
        stream = await host.open_stream()
        await stream.send(Kind.OPEN, b"{}")
        sending = asyncio.create_task(stream.send_data(Kind.RECORDS, bytes(WINDOW_BYTES - 1000)))
        while not host._wire._unsent:
            await asyncio.sleep(0)
        for _ in range(3 * mux.MAX_UNSENT_PONGS):
            host._take_control(Frame(Kind.PING, b"x"))
            host._pings = 0
        assert len(host._pongs) == mux.MAX_UNSENT_PONGS
        reading = asyncio.create_task(enclave.run())
        await sending
        host._take_control(Frame(Kind.PING, b"x"))
        assert len(host._pongs) < mux.MAX_UNSENT_PONGS
        reading.cancel()


async def test_end_of_the_connection_reaches_every_waiter():
    async with pair() as (host, enclave):
        ours, _theirs = await opened(host, enclave)
        receiving = asyncio.create_task(ours.receive())
        pinging = asyncio.create_task(asyncio.sleep(0))
        enclave.abort()
        with pytest.raises(TransportError):
            await receiving
        await pinging
        for step in (host.open_stream(), host.ping(), ours.send(Kind.STDIN, b"x")):
            with pytest.raises(TransportError):
                await step


@pytest.mark.parametrize(
    "wire",
    [
        encode(Frame(Kind.OPEN, b"{}", 0x8000)),  # nobody has asked for streams from there
        encode(Frame(Kind.OPEN, b"{}", 5)),  # a number of ours
        encode(Frame(Kind.STDOUT, b"x", 9)),  # never opened
        encode(Frame(Kind.OPEN, b"{}", 1)),
        encode(Frame(Kind.CLOSE, b"", 1)) * 2,
        encode(Frame(Kind.CLOSE, b"", 1)) + encode(Frame(Kind.STDOUT, b"x", 1)),
        encode(Frame(Kind.STDOUT, b"", 1, end=True)) + encode(Frame(Kind.STDOUT, b"x", 1)),
        encode(Frame(Kind.STDOUT, bytes(65536), 1)) * (WINDOW_BYTES // 65536 + 1),  # one more than the credit
        encode_credit(1, Kind.STDIN, 2**32 - 1),
        encode(Frame(Kind.CREDIT, b"", 1)),
        encode(Frame(Kind.DONE, b"{}", 1)) * 65,
        encode(Frame(Kind.PING, b"x")) * 9,
        encode(Frame(Kind.PING, bytes(33))),
        encode(Frame(Kind.HELLO, b"{}")),
        encode(Frame(Kind.STDOUT, b"x")),
        encode(Frame(Kind.ERROR, b"nonsense")),
        b"\xff" * 8,
    ],
)
async def test_what_breaks_the_rules_ends_the_connection(wire):
    async with pair(run_enclave=False) as (host, enclave):
        ours = await host.open_stream()
        await enclave.send_raw(wire)
        with pytest.raises(RemoteProtocolError) as caught:
            while True:
                await ours.receive()
        assert not isinstance(caught.value, StreamClosed) or b"\x1a" in wire[:1]
        while not host.has_ended:
            await asyncio.sleep(0)
        assert isinstance(host.failure(), RemoteProtocolError)


async def test_more_streams_than_allowed_end_the_connection():
    async with pair(run_enclave=False) as (host, enclave):
        host.accepting = True
        for number in ENCLAVE_STREAMS[: MAX_STREAMS + 1]:
            await enclave.send(Frame(Kind.OPEN, b"{}", number))
        taken = 0
        while await host.opened.get() is not None:
            taken += 1
        assert taken == MAX_STREAMS
        assert isinstance(host.failure(), RemoteProtocolError)


async def test_ping_is_answered():
    async with pair() as (host, enclave):
        assert 0 < await host.ping() < WAIT_S
        assert all(await asyncio.gather(host.ping(), enclave.ping(), host.ping()))


async def test_peer_that_reads_nothing_is_given_up(monkeypatch):
    class Hasty(liveness.Liveness):
        def __init__(self, now):
            super().__init__(now, interval_s=0.01, patience_s=0.05)

    monkeypatch.setattr(mux, "Liveness", Hasty)
    async with pair(run_enclave=False) as (host, _):
        assert await host.opened.get() is None
        assert "does not answer" in str(host.failure())
