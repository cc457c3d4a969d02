# SPDX-License-Identifier: Apache-2.0
"""The socket device against a guest's driver: conformance, credit, ends, and guests that break the rules."""

import random
import socket
import struct
import tracemalloc

import pytest
from enclavekit_emulator.vsock_device import packet as wire
from enclavekit_emulator.vsock_device.connection import BUFFER_BYTES
from enclavekit_emulator.vsock_device.device import MAX_WAITING_RESETS
from enclavekit_emulator.vsock_device.guest_memory import BadAddressError
from enclavekit_emulator.vsock_device.packet import HEADER_BYTES, Op, PacketError
from enclavekit_emulator.vsock_device.split_ring import FLAG_INDIRECT, FLAG_NEXT, FLAG_WRITE, RingError
from hypothesis import given, settings
from hypothesis import strategies as st

from .vsock_guest import GUEST_BASE, GUEST_CID, PARENT, RING, Bench

BROKEN = (RingError, BadAddressError, PacketError)


@pytest.fixture(params=[False, True], ids=["one buffer", "two buffers"])
def bench(request):
    made = Bench(split=request.param)
    yield made
    made.close()


def ops(got):
    return [packet.op for packet, _ in got]


def receive_all(sock, count):
    sock.settimeout(10)
    data = b""
    while len(data) < count:
        chunk = sock.recv(count - len(data))
        assert chunk, f"the end after {len(data)} of {count} bytes"
        data += chunk
    return data


def test_a_header_is_44_bytes_in_the_order_of_the_text():
    packet = wire.Packet(1, 2, 3, 4, Op.RW, 5, 6, 7, 8)
    raw = wire.encode_packet(packet)
    assert raw.hex() == (
        "0100000000000000" "0200000000000000" "03000000" "04000000" "05000000" "0100" "0500" "06000000" "07000000"
        "08000000"
    )  # fmt: skip
    assert wire.decode_packet(raw + b"rest") == packet


def test_bytes_go_both_ways_and_the_guests_close_is_answered(bench):
    sock = bench.connect()
    bench.guest.send(bench.packet(Op.RW, length=5), b"hello")
    bench.turn()
    assert receive_all(sock, 5) == b"hello"
    sock.sendall(b"world")
    ((packet, payload),) = bench.turn()
    assert (packet.op, packet.src_cid, packet.dst_cid, packet.src_port, packet.dst_port, payload) == (
        Op.RW, PARENT, GUEST_CID, 7000, 1000, b"world"
    )  # fmt: skip
    bench.guest.send(bench.packet(Op.SHUTDOWN, flags=wire.SHUTDOWN_BOTH))
    assert ops(bench.turn()) == [Op.RST]
    assert sock.recv(1) == b""
    assert bench.device.connections == 0


def test_half_closes_are_told_apart(bench):
    sock = bench.connect()
    bench.guest.send(bench.packet(Op.RW, length=1), b"a")
    bench.guest.send(bench.packet(Op.SHUTDOWN, flags=wire.SHUTDOWN_SEND))
    assert bench.turn() == []
    assert receive_all(sock, 1) + sock.recv(1) == b"a"
    sock.sendall(b"answer")
    assert [payload for _, payload in bench.turn()] == [b"answer"]
    sock.close()
    ((packet, _),) = bench.turn()
    assert (packet.op, packet.flags & wire.SHUTDOWN_SEND) == (Op.SHUTDOWN, wire.SHUTDOWN_SEND)
    bench.guest.send(bench.packet(Op.RST))
    assert bench.turn() == [] and bench.device.connections == 0


def test_our_half_close_leaves_the_other_direction(bench):
    sock = bench.connect()
    sock.shutdown(socket.SHUT_WR)
    ((packet, _),) = bench.turn()
    assert (packet.op, packet.flags) == (Op.SHUTDOWN, wire.SHUTDOWN_SEND)
    bench.guest.send(bench.packet(Op.RW, length=3), b"abc")
    bench.turn()
    assert receive_all(sock, 3) == b"abc"


def test_nobody_there_is_a_reset(bench):
    bench.refuses.add(7000)
    bench.guest.send(bench.packet(Op.REQUEST))
    assert ops(bench.turn()) == [Op.RST]
    bench.guest.send(bench.packet(Op.RW, length=1), b"x")
    assert ops(bench.turn()) == [Op.RST]
    bench.guest.send(bench.packet(Op.RST))
    assert bench.turn() == []


def test_credit_bounds_what_the_guest_is_sent(bench):
    sock = bench.connect(buf_alloc=5000)
    sock.setblocking(False)
    data = random.Random(1).randbytes(9000)
    sock.send(data)
    got = b"".join(payload for _, payload in bench.turn())
    assert got == data[:5000]
    bench.guest.taken = 4500
    bench.guest.send(bench.packet(Op.CREDIT_UPDATE, buf_alloc=5000))
    got += b"".join(payload for _, payload in bench.turn())
    assert got == data


def test_a_slow_socket_is_buffered_within_the_credit_that_was_given_and_no_byte_is_lost(bench):
    sock = bench.connect()
    data = random.Random(2).randbytes(BUFFER_BYTES)
    capacity = 0
    position = 0
    while position < len(data):
        chunk = data[position : position + 65536]
        bench.guest.send(bench.packet(Op.RW, length=len(chunk)), chunk)
        position += len(chunk)
        updates = [packet for packet, _ in bench.turn() if packet.op == Op.CREDIT_UPDATE]
        capacity = max([capacity, *(packet.fwd_cnt for packet in updates)])
    read = b""
    while len(read) < len(data):
        read += sock.recv(65536)
        for packet, _ in bench.turn():
            capacity = max(capacity, packet.fwd_cnt)
    assert read == data
    assert capacity >= BUFFER_BYTES - BUFFER_BYTES // 4


def test_more_than_the_credit_is_a_reset(bench):
    bench.connect()
    sent = 0
    answers = []
    while not answers and sent < 4 * BUFFER_BYTES:
        bench.guest.send(bench.packet(Op.RW, length=65536), bytes(65536))
        sent += 65536
        answers = [op for op in ops(bench.turn()) if op == Op.RST]
    assert answers == [Op.RST] and bench.device.connections == 0


def test_a_socket_of_ours_asks_the_guest(bench):
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    answers = []
    assert bench.device.ask(ours, PARENT, 53000, answers.append)
    ((packet, _),) = bench.turn()
    assert (packet.op, packet.dst_port, packet.dst_cid) == (Op.REQUEST, 53000, GUEST_CID)
    reply = bench.packet(Op.RESPONSE, src=53000, dst=packet.src_port)
    bench.guest.send(reply)
    bench.turn()
    assert answers == [True]
    theirs.sendall(b"ping")
    assert [payload for _, payload in bench.turn()] == [b"ping"]
    theirs.close()


def test_a_guest_that_refuses_and_one_that_is_given_up(bench):
    answers = []
    for number in range(2):
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        assert bench.device.ask(ours, PARENT, 1, answers.append)
        ((packet, _),) = bench.turn()
        if number:
            theirs.close()
            assert ops(bench.turn()) == [Op.RST]
        else:
            bench.guest.send(bench.packet(Op.RST, src=1, dst=packet.src_port))
            bench.turn()
            assert theirs.recv(1) == b""
    assert answers == [False, False] and bench.device.connections == 0


def test_a_reset_of_the_driver_ends_every_connection(bench):
    sock = bench.connect()
    bench.device.reset()
    assert sock.recv(1) == b"" and bench.device.connections == 0
    assert not bench.device.take_from_guest() and not bench.device.give_to_guest()


def test_a_guest_that_gives_no_buffers_fills_nothing_of_ours():
    bench = Bench(buffers=0)
    for _ in range(4 * MAX_WAITING_RESETS // RING):
        while bench.guest.tx.free:
            bench.guest.send(bench.packet(Op.RW, length=1), b"x")
        bench.turn()
    assert len(bench.device._resets) <= MAX_WAITING_RESETS
    bench.guest.post(0)
    assert ops(bench.turn())[0] == Op.RST
    bench.close()


def test_connections_are_bounded():
    bench = Bench(max_connections=3)
    for port in range(5):
        bench.guest.send(bench.packet(Op.REQUEST, src=port, dst=port))
    assert sorted(ops(bench.turn())) == [Op.RESPONSE] * 3 + [Op.RST] * 2
    bench.close()


def test_a_connection_whose_other_end_answers_later(bench):
    bench.slow.add(7000)
    bench.guest.send(bench.packet(Op.REQUEST))
    assert bench.turn() == []
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    bench.unanswered.pop()(ours)
    theirs.sendall(b"first")
    got = bench.turn()
    assert (ops(got), got[1][1]) == ([Op.RESPONSE, Op.RW], b"first")
    theirs.close()


@pytest.mark.parametrize("how", ["refused", "guest gives up", "driver is reset"])
def test_an_answer_that_comes_to_nothing_leaves_nothing(bench, how):
    bench.slow.add(7000)
    bench.guest.send(bench.packet(Op.REQUEST))
    bench.turn()
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    (answer,) = bench.unanswered
    if how == "refused":
        answer(None)
        assert ops(bench.turn()) == [Op.RST]
    elif how == "guest gives up":
        bench.guest.send(bench.packet(Op.RST))
        assert bench.turn() == []
        answer(ours)
        assert bench.turn() == [] and theirs.recv(1) == b""
    else:
        bench.device.reset()
        answer(ours)
        assert theirs.recv(1) == b""
    assert bench.device.connections == 0
    theirs.close()
    ours.close()


def test_many_small_packets_cost_no_more_than_their_bytes():
    """A guest that sends single bytes to whoever does not read is granted its bytes, not an object for each."""
    bench = Bench()
    sock = bench.connect()
    filler = bytes(4096)
    while not (link := next(iter(bench.device._links.by_key.values()))).pending:  # the socket's own buffer first
        bench.guest.send(bench.packet(Op.RW, length=len(filler)), filler)
        bench.turn()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(50_000):
            bench.guest.send(bench.packet(Op.RW, length=1), b"x")
            bench.device.take_from_guest()
            bench.guest.reclaim()
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert len(link.pending) >= 50_000 and grown < 3 * BUFFER_BYTES
    sock.close()
    bench.close()


def test_whoever_hangs_up_while_the_guest_has_no_credit_costs_no_turns(bench):
    sock = bench.connect(buf_alloc=0)
    sock.sendall(b"late")
    sock.close()
    assert bench.turn() == []  # `turn` would find that the device never rests
    bench.guest.send(bench.packet(Op.CREDIT_UPDATE))
    got = bench.turn()
    assert got[0][1] == b"late" and got[1][0].op == Op.SHUTDOWN


@pytest.mark.parametrize(
    ("address", "length", "flags", "following"),
    [
        (0, 64, 0, 0),
        (GUEST_BASE - 1, 64, 0, 0),
        (GUEST_BASE + (4 << 20) - 1, 64, 0, 0),
        (2**64 - 1, 64, 0, 0),
        (GUEST_BASE, 0xFFFFFFFF, 0, 0),
        (GUEST_BASE, HEADER_BYTES, FLAG_NEXT, 0),
        (GUEST_BASE, HEADER_BYTES, FLAG_NEXT, 0xFFFF),
        (GUEST_BASE, HEADER_BYTES, FLAG_INDIRECT, 0),
        (GUEST_BASE, HEADER_BYTES - 1, 0, 0),
        (GUEST_BASE, 0, 0, 0),
    ],
)
def test_hostile_descriptors_are_refused(address, length, flags, following):
    bench = Bench()
    bench.guest.tx.descriptor(0, address, length, flags, following)
    bench.guest.tx.offer(0)
    with pytest.raises(BROKEN):
        bench.device.take_from_guest()
    bench.close()


def test_hostile_rings_are_refused():
    bench = Bench()
    struct.pack_into("<H", bench.guest.memory, bench.guest.tx.available + 2, RING + 1)
    with pytest.raises(RingError):
        bench.device.take_from_guest()
    bench.close()
    bench = Bench()
    bench.guest.tx.offer(RING)
    with pytest.raises(RingError):
        bench.device.take_from_guest()
    bench.close()


def test_receive_buffers_without_room_are_refused():
    for length, flags in ((HEADER_BYTES - 1, FLAG_WRITE), (HEADER_BYTES, FLAG_WRITE), (HEADER_BYTES + 9, 0)):
        bench = Bench(buffers=1)
        sock = bench.connect()
        bench.guest.rx.descriptor(0, GUEST_BASE, length, flags)
        sock.sendall(b"x")
        with pytest.raises(BROKEN):
            bench.turn()
        bench.close()


@settings(max_examples=300)
@given(st.randoms(use_true_random=False), st.integers(0, 60))
def test_whatever_a_guest_writes_ends_its_device_at_worst(random_source, count):
    """Packets with fields drawn near the valid ones, rings and descriptors with single bytes changed."""
    bench = Bench(split=random_source.random() < 0.5)
    before = len(bench.guest.memory)
    try:
        for _ in range(count):
            choice = random_source.random()
            if choice < 0.1:
                where = random_source.randrange(bench.guest.tx.end)
                bench.guest.memory[where] = random_source.randrange(256)
            elif bench.guest.tx.free:
                op = random_source.choice([*Op, 0, 9])
                length = random_source.choice([0, 0, 1, 4096, 65536]) if op == Op.RW else 0
                packet = bench.packet(
                    op,
                    src=random_source.randrange(3),
                    dst=random_source.randrange(3),
                    length=length,
                    flags=random_source.randrange(4),
                    buf_alloc=random_source.choice([0, 1, 5000, 0xFFFFFFFF]),
                    fwd_cnt=random_source.choice([0, 1, 0xFFFFFFFF]),
                    cid=random_source.choice([3, 3, 3, 4, GUEST_CID]),
                )
                bench.guest.send(packet, bytes(length))
            if random_source.random() < 0.3:
                for sock in bench.accepted.values():
                    sock.setblocking(False)
                    try:
                        sock.send(bytes(random_source.randrange(5000)))
                        sock.recv(100_000)
                    except OSError:
                        pass
            bench.turn()
    except BROKEN:
        pass
    assert len(bench.guest.memory) == before
    assert bench.device.connections <= 9 + 1
    for link in bench.device._links.by_key.values():
        assert sum(map(len, link.pending)) <= BUFFER_BYTES
    bench.close()
