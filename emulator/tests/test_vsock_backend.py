# SPDX-License-Identifier: Apache-2.0
"""The vhost-user session, with this test as QEMU and as the guest, and the port by which the host comes in."""

import array
import mmap
import os
import socket
import struct
import threading

import pytest
from enclavekit_emulator.vsock_device import vhost_user as proto
from enclavekit_emulator.vsock_device.backend import FEATURES, Backend
from enclavekit_emulator.vsock_device.hybrid_port import REQUEST_TIMEOUT_S, HybridPort, parse_request
from enclavekit_emulator.vsock_device.packet import Op
from enclavekit_emulator.vsock_device.vhost_user import Message, ProtocolError, Request

from .vsock_guest import GUEST_BASE, GUEST_CID, PARENT, RING, USER_BASE, Bench, Guest

MEMORY_BYTES = 4 << 20
PATIENCE_S = 30


class Qemu:
    """QEMU's end of the session, with a guest whose memory is a memory file."""

    def __init__(self, dial=None):
        self.file = os.memfd_create("guest")
        os.ftruncate(self.file, MEMORY_BYTES)
        self.memory = mmap.mmap(self.file, MEMORY_BYTES)
        self.guest = Guest(memory=self.memory)
        self.channel, theirs = socket.socketpair()
        self.channel.settimeout(PATIENCE_S)
        self.kicks = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(2)]
        self.calls = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(2)]
        self.backend = Backend(theirs, GUEST_CID, dial or Bench.dial)
        self.clock = 0.0
        self.thread = None

    def tell(self, request, payload=b"", fds=(), flags=0):
        header = proto.HEADER.pack(request, proto.VERSION | flags, len(payload))
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self.channel.sendmsg([header + payload], rights)

    def turn(self):
        self.backend.run_once(0)

    def ask(self, request, payload=b"", flags=0):
        self.tell(request, payload, flags=flags)
        self.turn()
        number, _, size = proto.HEADER.unpack(self.channel.recv(12, socket.MSG_WAITALL))
        assert number == request
        return self.channel.recv(size, socket.MSG_WAITALL) if size else b""

    def set_up(self):
        """What QEMU says until the rings run."""
        assert proto.U64.unpack(self.ask(Request.GET_FEATURES))[0] == FEATURES
        self.tell(Request.SET_FEATURES, proto.U64.pack(FEATURES))
        table = struct.pack("<II", 1, 0) + proto.REGION.pack(GUEST_BASE, MEMORY_BYTES, USER_BASE, 0)
        self.tell(Request.SET_MEM_TABLE, table, [self.file])
        for index, ring in enumerate((self.guest.rx, self.guest.tx)):
            self.tell(Request.SET_VRING_NUM, proto.VRING_STATE.pack(index, RING))
            self.tell(Request.SET_VRING_BASE, proto.VRING_STATE.pack(index, 0))
            addresses = (USER_BASE + ring.table, USER_BASE + ring.used, USER_BASE + ring.available)
            self.tell(Request.SET_VRING_ADDR, proto.VRING_ADDRESS.pack(index, 0, *addresses, 0))
            self.tell(Request.SET_VRING_KICK, proto.U64.pack(index), [self.kicks[index]])
            self.tell(Request.SET_VRING_CALL, proto.U64.pack(index), [self.calls[index]])
            self.tell(Request.SET_VRING_ENABLE, proto.VRING_STATE.pack(index, 1))
        for _ in range(20):
            self.turn()
        return self

    def kick(self):
        for fd in self.kicks:
            os.eventfd_write(fd, 1)
        self.turn()

    def close(self):
        self.backend.close()
        self.channel.close()
        for fd in (*self.kicks, *self.calls, self.file):
            os.close(fd)


@pytest.fixture
def qemu():
    sockets = []

    def dial(cid, port, answer):
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        sockets.append(theirs)
        answer(ours)

    made = Qemu(dial)
    made.dialled = sockets
    yield made
    made.close()
    for sock in sockets:
        sock.close()


def request_packet(qemu, op, **fields):
    return Bench.packet(type("B", (), {"guest": qemu.guest})(), op, **fields)


def test_configuration_space_holds_the_cid(qemu):
    reply = qemu.ask(Request.GET_CONFIG, proto.CONFIG.pack(0, 8, 0) + bytes(8))
    assert reply == proto.CONFIG.pack(0, 8, 0) + struct.pack("<Q", GUEST_CID)
    assert qemu.ask(Request.GET_CONFIG, proto.CONFIG.pack(4, 8, 0) + bytes(8)) == b""


def test_a_connection_through_shared_memory_with_interrupts(qemu):
    qemu.set_up()
    qemu.guest.send(request_packet(qemu, Op.REQUEST))
    qemu.kick()
    assert [packet.op for packet, _ in qemu.guest.receive()] == [Op.RESPONSE]
    assert os.eventfd_read(qemu.calls[0]) and os.eventfd_read(qemu.calls[1])
    qemu.guest.send(request_packet(qemu, Op.RW, length=5), b"hello")
    qemu.kick()
    assert qemu.dialled[0].recv(10) == b"hello"
    qemu.dialled[0].sendall(b"world")
    qemu.turn()
    assert [payload for _, payload in qemu.guest.receive()] == [b"world"]


def test_a_stopped_ring_says_where_it_was_and_ends_the_connections(qemu):
    qemu.set_up()
    qemu.guest.send(request_packet(qemu, Op.REQUEST))
    qemu.kick()
    reply = qemu.ask(Request.GET_VRING_BASE, proto.VRING_STATE.pack(1, 0))
    assert proto.VRING_STATE.unpack(reply) == (1, 1)
    assert qemu.dialled[0].recv(1) == b""


def test_a_guest_that_breaks_its_ring_loses_its_device_and_nothing_else(qemu):
    qemu.set_up()
    struct.pack_into("<H", qemu.memory, qemu.guest.tx.available + 2, RING + 1)
    qemu.kick()
    assert qemu.backend.is_broken and not qemu.backend.is_over
    qemu.kick()
    assert proto.U64.unpack(qemu.ask(Request.GET_FEATURES))[0] == FEATURES


@pytest.mark.parametrize(
    ("request_", "payload"),
    [
        (Request.SET_VRING_NUM, proto.VRING_STATE.pack(0, 3)),
        (Request.SET_VRING_NUM, proto.VRING_STATE.pack(0, 1 << 20)),
        (Request.SET_VRING_NUM, proto.VRING_STATE.pack(9, 128)),
        (Request.SET_VRING_NUM, b"x"),
        (Request.SET_FEATURES, proto.U64.pack(0)),
        (Request.SET_MEM_TABLE, struct.pack("<II", 1, 0) + proto.REGION.pack(0, 1, 0, 0)),
        (Request.SET_MEM_TABLE, struct.pack("<II", 99, 0)),
        (77, b""),
    ],
)
def test_messages_that_qemu_does_not_send_end_the_session(qemu, request_, payload):
    qemu.tell(request_, payload)
    qemu.turn()
    assert qemu.backend.is_over


def test_the_end_of_qemu_is_the_end(qemu):
    qemu.channel.shutdown(socket.SHUT_WR)
    qemu.turn()
    assert qemu.backend.is_over


def test_message_parsing_is_strict():
    with pytest.raises(ProtocolError):
        proto.parse_header(proto.HEADER.pack(1, 2, 0))
    with pytest.raises(ProtocolError):
        proto.parse_header(proto.HEADER.pack(1, 1, 1 << 20))
    with pytest.raises(ProtocolError):
        Message(24, 1, b"x").config()


@pytest.mark.parametrize(
    ("line", "port"),
    [(b"CONNECT 53000\n", 53000), (b"CONNECT 4294967295\n", 2**32 - 1), (b"CONNECT 0\n", None), (b"CONNECT -1\n", None),
     (b"CONNECT 4294967296\n", None), (b"connect 1\n", None), (b"CONNECT\n", None), (b"\n", None)],
)  # fmt: skip
def test_connect_lines(line, port):
    assert parse_request(line) == port


@pytest.fixture
def hybrid(qemu, tmp_path_factory):
    path = str(tmp_path_factory.mktemp("h") / "v.sock")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(8)
    now = [0.0]
    port = HybridPort(qemu.backend, listener, lambda: now[0])
    qemu.set_up()

    def connect():
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(PATIENCE_S)
        sock.connect(path)
        return sock

    port.connect, port.now = connect, now
    yield port
    listener.close()


def test_the_host_comes_in_and_pipelined_bytes_are_the_streams(qemu, hybrid):
    sock = hybrid.connect()
    sock.sendall(b"CONNECT 7\nfirst bytes")
    for _ in range(3):
        qemu.turn()
    ((packet, _),) = qemu.guest.receive()
    assert (packet.op, packet.dst_port, packet.src_cid) == (Op.REQUEST, 7, PARENT)
    qemu.guest.send(request_packet(qemu, Op.RESPONSE, src=7, dst=packet.src_port))
    qemu.kick()
    assert sock.recv(100) == b"OK 7\n"
    qemu.turn()
    assert [payload for _, payload in qemu.guest.receive()] == [b"first bytes"]
    sock.close()


def test_garbage_and_silence_are_cut_off(qemu, hybrid):
    garbage, silent, unanswered = hybrid.connect(), hybrid.connect(), hybrid.connect()
    garbage.sendall(b"GET / HTTP/1.1\r\n\r\n" * 10)
    unanswered.sendall(b"CONNECT 9\n")
    for _ in range(6):
        qemu.turn()
    with pytest.raises(ConnectionResetError):  # it sent more than anybody read
        garbage.recv(1)
    hybrid.now[0] = REQUEST_TIMEOUT_S + 1
    hybrid.expire()
    qemu.turn()
    assert silent.recv(1) == b"" and unanswered.recv(1) == b""
    assert hybrid.next_deadline is None
    assert [packet.op for packet, _ in qemu.guest.receive()] == [Op.REQUEST, Op.RST]


def test_bytes_survive_a_loop_that_runs_on_its_own(qemu):
    """The other end writes at its own pace; what arrives is what was sent, up to its end."""
    total = 4 << 20
    qemu.set_up()
    qemu.guest.send(request_packet(qemu, Op.REQUEST))
    qemu.kick()
    qemu.guest.receive()
    sent = os.urandom(total)
    writer = threading.Thread(target=lambda: (qemu.dialled[0].sendall(sent), qemu.dialled[0].shutdown(socket.SHUT_WR)))
    writer.start()
    got, ended = b"", False
    while not ended:
        qemu.backend.run_once(0.01)
        for packet, payload in qemu.guest.receive():
            got += payload
            qemu.guest.taken = len(got)
            ended = ended or packet.op == Op.SHUTDOWN
        qemu.guest.reclaim()
        qemu.guest.send(request_packet(qemu, Op.CREDIT_UPDATE))
        for fd in qemu.kicks:
            os.eventfd_write(fd, 1)
    writer.join()
    assert got == sent
