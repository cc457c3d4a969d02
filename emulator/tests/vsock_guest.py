# SPDX-License-Identifier: Apache-2.0
"""A guest's virtio-vsock driver in Python: rings in a buffer, packets out and in, for tests of the device."""

import select
import socket
import struct

from enclavekit_emulator.vsock_device.device import VsockDevice
from enclavekit_emulator.vsock_device.guest_memory import GuestMemory, Region
from enclavekit_emulator.vsock_device.packet import HEADER_BYTES, Op, Packet, decode_packet, encode_packet
from enclavekit_emulator.vsock_device.split_ring import DESCRIPTOR, FLAG_NEXT, FLAG_WRITE, SplitRing

GUEST_CID, PARENT = 16, 3
RING = 128
GUEST_BASE, USER_BASE = 0x10_0000, 0x7F00_0000_0000
BUFFER = HEADER_BYTES + 4096
BUF_ALLOC = 256 * 1024


class Ring:
    """One queue from the driver's side."""

    def __init__(self, memory, offset, size=RING):
        self.memory, self.size = memory, size
        table, available, used = SplitRing.sizes(size)
        self.table, self.available = offset, offset + table
        self.used = (self.available + available + 3) & ~3
        self.end = self.used + used
        self.sizes = (table, available, used)
        self.free = list(range(size))
        self.index = self.seen = 0

    def descriptor(self, number, address, length, flags, following=0):
        DESCRIPTOR.pack_into(self.memory, self.table + number * DESCRIPTOR.size, address, length, flags, following)

    def offer(self, head):
        struct.pack_into("<H", self.memory, self.available + 4 + 2 * (self.index % self.size), head)
        self.index = (self.index + 1) & 0xFFFF
        struct.pack_into("<H", self.memory, self.available + 2, self.index)

    def completed(self):
        """Return (head, written) of the chains that came back."""
        (until,) = struct.unpack_from("<H", self.memory, self.used + 2)
        found = []
        while self.seen != until:
            found.append(struct.unpack_from("<II", self.memory, self.used + 4 + 8 * (self.seen % self.size)))
            self.seen = (self.seen + 1) & 0xFFFF
        return found

    def device_side(self, memory, base=0):
        view = memoryview(self.memory)
        table, available, used = self.sizes
        return SplitRing(
            self.size,
            view[self.table : self.table + table],
            view[self.available : self.available + available],
            view[self.used : self.used + used],
            memory,
            base,
        )


class Guest:
    """A guest with `buffers` receive buffers, cut in one or two descriptors as older and newer kernels do."""

    def __init__(self, memory=None, buffers=RING // 2, split=False):
        self.memory = memory if memory is not None else bytearray(4 << 20)
        self.rx, self.split = Ring(self.memory, 0), split
        self.tx = Ring(self.memory, (self.rx.end + 15) & ~15)
        self.rx_area = 0x1_0000
        self.tx_area = self.rx_area + RING * BUFFER
        self.sent = self.taken = 0
        for number in range(buffers):
            self.post(number)

    def post(self, number):
        address = GUEST_BASE + self.rx_area + number * BUFFER
        if self.split:
            first, second = 2 * number, 2 * number + 1
            self.rx.descriptor(first, address, HEADER_BYTES, FLAG_WRITE | FLAG_NEXT, second)
            self.rx.descriptor(second, address + HEADER_BYTES, BUFFER - HEADER_BYTES, FLAG_WRITE)
            self.rx.offer(first)
        else:
            self.rx.descriptor(number, address, BUFFER, FLAG_WRITE)
            self.rx.offer(number)

    def send(self, packet, payload=b""):
        slot = self.tx.free.pop(0)
        offset = self.tx_area + slot * 0x1_1000 % (len(self.memory) - self.tx_area - 0x1_1000)
        raw = encode_packet(packet) + payload
        self.memory[offset : offset + len(raw)] = raw
        self.tx.descriptor(slot, GUEST_BASE + offset, len(raw), 0)
        self.tx.offer(slot)

    def reclaim(self):
        done = self.tx.completed()
        self.tx.free += [head for head, _ in done]
        return done

    def receive(self, post=True):
        """Return [(packet, payload)] of what the device has written; the buffers are posted again."""
        found = []
        for head, written in self.rx.completed():
            number = head // 2 if self.split else head
            if number >= RING:
                continue  # a head that a test made up
            offset = self.rx_area + number * BUFFER
            raw = bytes(self.memory[offset : offset + written])
            found.append((decode_packet(raw), raw[HEADER_BYTES:]))
            if post:
                self.post(number)
        return found


class Bench:
    """A guest, a device and the loop between them; sockets that the guest dials end in `accepted`."""

    def __init__(self, max_connections=64, **options):
        self.guest = Guest(**options)
        memory = GuestMemory([Region(GUEST_BASE, USER_BASE, memoryview(self.guest.memory))])
        self.epoll = select.epoll()
        self.accepted = {}
        self.refuses = set()
        self.slow, self.unanswered = set(), []
        """Ports whose dial is answered later, by the test."""
        self.device = VsockDevice(GUEST_CID, self.epoll, self.dial, max_connections)
        self.device.attach(self.guest.rx.device_side(memory), self.guest.tx.device_side(memory))

    def dial(self, cid, port, answer):
        if port in self.refuses:
            answer(None)
            return
        if port in self.slow:
            self.unanswered.append(answer)
            return
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        self.accepted[cid, port] = theirs
        answer(ours)

    def turn(self):
        """Let the device do all that it can do now; return what the guest got."""
        got = []
        for _ in range(10_000):
            events = self.epoll.poll(0)
            for fd, mask in events:
                if self.device.owns(fd):
                    self.device.on_socket(fd, mask)
            moved = self.device.take_from_guest() | self.device.give_to_guest()
            new = self.guest.receive()
            reclaimed = self.guest.reclaim()
            got += new
            if not (events or moved or new or reclaimed):
                return got
        raise AssertionError("the device never rests")

    def packet(self, op, src=1000, dst=7000, **fields):
        fields = {"buf_alloc": BUF_ALLOC, "fwd_cnt": self.guest.taken} | fields
        return Packet(GUEST_CID, fields.pop("cid", PARENT), src, dst, op, **fields)

    def connect(self, src=1000, dst=7000, **fields):
        """Open a connection from the guest; return the socket at its other end."""
        self.guest.send(self.packet(Op.REQUEST, src, dst, **fields))
        assert [packet.op for packet, _ in self.turn()] == [Op.RESPONSE]
        return self.accepted[PARENT, dst]

    def close(self):
        self.device.reset()
        self.epoll.close()
        for sock in self.accepted.values():
            sock.close()
