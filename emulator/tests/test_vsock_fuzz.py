# SPDX-License-Identifier: Apache-2.0
"""Hostile guests: rings of noise, packets of noise, descriptors at the edges of memory, sockets that come and go.

Around the guest's memory lies a secret that no address may reach: it must neither change nor come out of a socket.
Whatever a guest writes, the device does its work or says that the guest has broken it; nothing else is raised, and
nothing that it keeps grows beyond its limits.
"""

import random
import struct
import tracemalloc

import pytest
from enclavekit_emulator.vsock_device.connection import BUFFER_BYTES
from enclavekit_emulator.vsock_device.device import MAX_WAITING_RESETS
from enclavekit_emulator.vsock_device.guest_memory import BadAddressError, GuestMemory, Region
from enclavekit_emulator.vsock_device.packet import (
    HEADER,
    HEADER_BYTES,
    MAX_PAYLOAD_BYTES,
    Op,
    PacketError,
    decode_packet,
)
from enclavekit_emulator.vsock_device.split_ring import RingError
from hypothesis import example, given, settings
from hypothesis import strategies as st

from .vsock_guest import GUEST_BASE, GUEST_CID, RING, USER_BASE, Bench

BROKEN = (RingError, BadAddressError, PacketError)
MAX_CONNECTIONS = 8
MARGIN = 64 * 1024
SECRET = b"not the guest's memory! "
MEMORY_BYTES = 4 << 20
TURNS = 20

# near what is valid, and far away from it
ADDRESSES = [0, 1, GUEST_BASE - 1, GUEST_BASE, GUEST_BASE + 1, GUEST_BASE + 0x1_0000, GUEST_BASE + 0x20_0000,
             GUEST_BASE + MEMORY_BYTES - 45, GUEST_BASE + MEMORY_BYTES - 1, GUEST_BASE + MEMORY_BYTES, USER_BASE,
             2**32 - 1, 2**63, 2**64 - 44, 2**64 - 1]  # fmt: skip
LENGTHS = [0, 1, 43, 44, 45, 100, 4096, 4140, 65535, 65536, 65580, 1 << 20, (1 << 20) + 1, 2**31, 2**32 - 1]
COUNTERS = [0, 1, 4096, BUFFER_BYTES, 2**31, 2**32 - 1]


class Surrounded:
    """A bench whose guest's memory lies in the middle of the secret."""

    def __init__(self, source):
        around = SECRET * (MARGIN // len(SECRET) + 1)
        self.outer = bytearray(around + bytes(MEMORY_BYTES) + around)
        self.margin = len(around)
        memory = memoryview(self.outer)[self.margin : self.margin + MEMORY_BYTES]
        self.bench = Bench(memory=memory, split=source.random() < 0.5, max_connections=MAX_CONNECTIONS)
        self.source = source

    def serve(self):
        """What the process of the device does after an event. Raises what a guest has broken."""
        device = self.bench.device
        for fd, mask in self.bench.epoll.poll(0):
            if device.owns(fd):
                device.on_socket(fd, mask)
        for _ in range(TURNS):
            if not (device.take_from_guest() | device.give_to_guest()) and not device.has_ready:
                return

    def stir_sockets(self):
        """The host's programs write, read and hang up."""
        for key, sock in list(self.bench.accepted.items()):
            sock.setblocking(False)
            try:
                sock.send(bytes(self.source.randrange(100_000)))
                assert SECRET not in sock.recv(1 << 20)
            except OSError:
                pass
            if self.source.random() < 0.2:
                sock.close()
                del self.bench.accepted[key]

    def check(self):
        end = self.margin + MEMORY_BYTES
        assert self.outer[: self.margin] == self.outer[end:] == SECRET * (self.margin // len(SECRET))
        device = self.bench.device
        assert device.connections <= MAX_CONNECTIONS and len(device._resets) <= MAX_WAITING_RESETS
        assert len(device._links.by_fd) <= device.connections and len(device._links.to_say) <= device.connections
        for link in device._links.by_key.values():
            assert len(link.pending) <= BUFFER_BYTES and len(link.connection.still_to_say) <= 5
            assert link.sock is not None or not link.pending

    def close(self):
        self.bench.close()
        assert self.bench.device.connections == 0 and not self.bench.device._links.by_fd


def random_packet(source, noise=0.005):
    """A packet near a valid one, with its payload, or noise."""
    if source.random() < noise:  # rarely: it ends the device, and with it the attack
        return source.randbytes(source.randrange(2 * HEADER_BYTES))
    op = source.choice([*Op, *[Op.REQUEST, Op.RW, Op.CREDIT_UPDATE] * 3, 0, 9])
    length = source.choice([0, 1, 4096, MAX_PAYLOAD_BYTES]) if op == Op.RW else 0
    header = HEADER.pack(
        source.choice([GUEST_CID] * 8 + [3, 99]),
        source.choice([3] * 6 + [2, 4, GUEST_CID, 2**64 - 1]),
        source.randrange(3),
        source.randrange(3),
        length,
        source.choice([1] * 20 + [2]),
        op,
        source.randrange(4),
        source.choice(COUNTERS),
        source.choice(COUNTERS),
    )
    return header + bytes(length)


def send_raw(guest, raw, source, cuts=0.5):
    """Offer bytes in a chain that may be cut anywhere."""
    if not guest.tx.free:
        return
    slot = guest.tx.free.pop(0)
    offset = guest.tx_area + slot * 0x1_1000 % (MEMORY_BYTES - guest.tx_area - 0x1_1000)
    raw = raw[: len(guest.memory) - offset]
    guest.memory[offset : offset + len(raw)] = raw
    cut = source.randrange(len(raw) + 1)
    if source.random() < cuts and guest.tx.free:
        second = guest.tx.free.pop()  # its number is lost to the driver, as that of a hostile one may be
        guest.tx.descriptor(slot, GUEST_BASE + offset, cut, 1, second)
        guest.tx.descriptor(second, GUEST_BASE + offset + cut, len(raw) - cut, 0)
    else:
        guest.tx.descriptor(slot, GUEST_BASE + offset, len(raw), 0)
    guest.tx.offer(slot)


def disturb_rings(guest, source):
    """Write a descriptor, an entry, an index or a byte that is wrong, in either ring."""
    ring = source.choice([guest.rx, guest.tx])
    match source.randrange(5):
        case 0 | 1:
            ring.descriptor(
                source.randrange(RING), source.choice(ADDRESSES), source.choice(LENGTHS), source.randrange(8),
                source.choice([source.randrange(RING), RING, 0xFFFF]),
            )  # fmt: skip
        case 2:
            ring.offer(source.choice([source.randrange(RING), RING, 0xFFFF]))
        case 3:
            index = (ring.index + source.choice([1, 2, RING, RING + 1, 0x8000])) & 0xFFFF
            struct.pack_into("<H", guest.memory, ring.available + 2, index)
        case _:
            where = source.randrange(guest.tx.end)
            guest.memory[where : where + 8] = source.randbytes(8)


def attack(source, steps, disturbance):
    surrounded = Surrounded(source)
    bench = surrounded.bench
    try:
        for _ in range(steps):
            if source.random() < disturbance:
                disturb_rings(bench.guest, source)
            else:
                send_raw(bench.guest, random_packet(source), source)
            if source.random() < 0.3:
                surrounded.stir_sockets()
            surrounded.serve()
            if not disturbance:  # a guest whose rings are noise learns nothing from them
                bench.guest.receive()
                bench.guest.reclaim()
            surrounded.check()
    except BROKEN:
        surrounded.check()
    finally:
        surrounded.close()


RANDOM = st.integers(0, 2**64 - 1)


@settings(max_examples=150, deadline=None)
@given(RANDOM)
def test_rings_of_noise(seed):
    attack(random.Random(seed), 40, 0.3)


@settings(max_examples=150, deadline=None)
@given(RANDOM)
def test_packets_of_noise(seed):
    attack(random.Random(seed), 60, 0.0)


@pytest.mark.long
@pytest.mark.parametrize("disturbance", [0.0, 0.02, 0.1, 0.5])
def test_hostile_guests_for_a_long_time(disturbance):
    @settings(max_examples=4000, deadline=None)
    @given(RANDOM)
    def run(seed):
        attack(random.Random(seed), 100, disturbance)

    run()


@settings(max_examples=300)
@given(st.binary(max_size=60))
@example(bytes(44))
def test_headers_are_read_or_refused(raw):
    try:
        packet = decode_packet(raw)
    except PacketError:
        return
    assert len(raw) >= HEADER_BYTES and packet.length <= MAX_PAYLOAD_BYTES
    assert packet.op == Op.RW or not packet.length


@settings(max_examples=500)
@given(
    st.lists(st.tuples(st.integers(0, 300), st.integers(1, 100)), max_size=3),
    st.integers(-10, 500),
    st.integers(0, 300),
)
def test_memory_gives_what_lies_in_one_region_and_nothing_else(places, address, size):
    regions = []
    for number, (start, length) in enumerate(places):
        view = memoryview(bytearray(bytes([number]) * length))
        regions.append(Region(start, start + 1000, view))
    memory = GuestMemory(regions)
    holding = [r for r in regions if r.guest_address <= address and address + size <= r.guest_address + r.size]
    for read, base in ((memory.guest, 0), (memory.user, 1000)):
        try:
            found = read(address + base, size)
        except BadAddressError:
            assert not holding
        else:
            assert holding and len(found) == size
            offset = address - holding[0].guest_address
            assert found == holding[0].view[offset : offset + size]


@pytest.mark.long
def test_a_hostile_guest_that_never_stops_costs_no_memory():
    """Fifty thousand packets out of place from one guest whose rings stay whole."""
    source = random.Random(7)
    surrounded = Surrounded(source)
    bench = surrounded.bench
    highest = []
    tracemalloc.start()
    try:
        for number in range(50_000):
            send_raw(bench.guest, random_packet(source, noise=0), source, cuts=0)
            surrounded.serve()
            bench.guest.receive()
            bench.guest.reclaim()
            if number % 100 == 0:
                surrounded.stir_sockets()
            if number % 10_000 == 9_999:
                highest.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
        surrounded.close()
    assert max(highest) <= MAX_CONNECTIONS * BUFFER_BYTES * 2 + (2 << 20)
