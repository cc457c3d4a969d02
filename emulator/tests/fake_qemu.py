# SPDX-License-Identifier: Apache-2.0
"""A stand-in for QEMU: answers `-M help`, speaks vhost-user as QEMU does, and has a guest that sends its heartbeat.

`$FAKE_QEMU/machines` is what it says it can emulate; what it was started with goes to `$FAKE_QEMU/started.json`.
"""

import array
import hashlib
import itertools
import json
import mmap
import os
import select
import signal
import socket
import struct
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import vsock_guest as driver
from enclavekit_emulator.vsock_device import vhost_user as proto
from enclavekit_emulator.vsock_device.packet import Op, Packet
from enclavekit_emulator.vsock_device.vhost_user import Request

MEMORY_BYTES = 4 << 20
FEATURES = 1 << 32 | 1 << 30


class Session:
    """QEMU's end of the vhost-user channel, and the guest whose rings it has announced."""

    def __init__(self, channel):
        self.channel = socket.socket(fileno=channel)
        self.file = os.memfd_create("guest")
        os.ftruncate(self.file, MEMORY_BYTES)
        self.guest = driver.Guest(memory=mmap.mmap(self.file, MEMORY_BYTES))
        self.kicks = [os.eventfd(0) for _ in range(2)]
        self.calls = [os.eventfd(0) for _ in range(2)]
        self.tell(Request.SET_FEATURES, proto.U64.pack(FEATURES))
        (self.cid,) = struct.unpack("<Q", self.ask(Request.GET_CONFIG, proto.CONFIG.pack(0, 8, 0) + bytes(8))[12:])
        table = struct.pack("<II", 1, 0) + proto.REGION.pack(driver.GUEST_BASE, MEMORY_BYTES, driver.USER_BASE, 0)
        self.tell(Request.SET_MEM_TABLE, table, [self.file])
        for index, ring in enumerate((self.guest.rx, self.guest.tx)):
            base = driver.USER_BASE
            self.tell(Request.SET_VRING_NUM, proto.VRING_STATE.pack(index, driver.RING))
            self.tell(Request.SET_VRING_BASE, proto.VRING_STATE.pack(index, 0))
            addresses = (base + ring.table, base + ring.used, base + ring.available)
            self.tell(Request.SET_VRING_ADDR, proto.VRING_ADDRESS.pack(index, 0, *addresses, 0))
            self.tell(Request.SET_VRING_KICK, proto.U64.pack(index), [self.kicks[index]])
            self.tell(Request.SET_VRING_CALL, proto.U64.pack(index), [self.calls[index]])
            self.tell(Request.SET_VRING_ENABLE, proto.VRING_STATE.pack(index, 1))

    def tell(self, request, payload=b"", fds=()):
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self.channel.sendmsg([proto.HEADER.pack(request, proto.VERSION, len(payload)) + payload], rights)

    def ask(self, request, payload=b""):
        self.tell(request, payload)
        _, _, size = proto.HEADER.unpack(self.channel.recv(proto.HEADER.size, socket.MSG_WAITALL))
        return self.channel.recv(size, socket.MSG_WAITALL)

    def send(self, op, port, payload=b"", **fields):
        packet = Packet(self.cid, 3, 1000, port, op, len(payload), buf_alloc=1 << 18, **fields)
        self.guest.send(packet, payload)
        os.eventfd_write(self.kicks[1], 1)

    def receive(self):
        """Wait for the device's interrupt; return what it brought."""
        while True:
            select.select(self.calls[:1], [], [])  # the other says that packets were taken
            os.eventfd_read(self.calls[0])
            if got := self.guest.receive():
                return got


def main(argv):
    home = Path(os.environ["FAKE_QEMU"])
    if argv[-2:] == ["-M", "help"]:
        print((home / "machines").read_text())
        return 0
    options = dict(itertools.pairwise(argv))
    if options.get("-accel") == "kvm" and "-chardev" not in options:
        return 1  # a trial whether KVM runs the kernel
    kernel = Path(options["-kernel"]).read_bytes()
    facts = {"argv": argv, "kernel": hashlib.sha256(kernel).hexdigest(), "pid": os.getpid()}
    (home / "started.json").write_text(json.dumps(facts))
    (channel,) = [word.partition("fd=")[2] for word in argv if word.startswith("socket,id=vsock,")]
    session = Session(int(channel))
    session.send(Op.REQUEST, 9000)
    assert session.receive()[0][0].op == Op.RESPONSE
    session.send(Op.RW, 9000, b"\xb7")
    while not any(payload == b"\xb7" for _, payload in session.receive()):
        pass
    print("the guest is up", flush=True)
    signal.pause()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
