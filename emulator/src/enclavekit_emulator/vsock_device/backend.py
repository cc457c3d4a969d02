# SPDX-License-Identifier: Apache-2.0
"""The vhost-user session with QEMU: memory, rings and their eventfds, and the loop that serves the device.

QEMU runs as the same user and is trusted with its own protocol; the guest behind it is not. What the guest breaks in
its rings ends its device, with one line that says what it was; QEMU goes on, and so does the enclave, without vsock.
"""

from __future__ import annotations

import array
import contextlib
import mmap
import os
import select
import socket
from collections.abc import Callable
from dataclasses import dataclass

from enclavekit_core.logs import get_logger

from enclavekit_emulator.vsock_device import vhost_user as proto
from enclavekit_emulator.vsock_device.device import MAX_CONNECTIONS, Dial, VsockDevice
from enclavekit_emulator.vsock_device.guest_memory import BadAddressError, GuestMemory, Region
from enclavekit_emulator.vsock_device.packet import PacketError
from enclavekit_emulator.vsock_device.split_ring import MAX_RING_SIZE, RingError, SplitRing
from enclavekit_emulator.vsock_device.vhost_user import Message, ProtocolError, Request

RX, TX = 0, 1  # as the guest sees them; the third queue of the device, for events, stays with QEMU
VIRTIO_F_VERSION_1 = 1 << 32
VHOST_USER_F_PROTOCOL_FEATURES = 1 << 30
FEATURES = VIRTIO_F_VERSION_1 | VHOST_USER_F_PROTOCOL_FEATURES
PROTOCOL_REPLY_ACK, PROTOCOL_CONFIG = 1 << 3, 1 << 9
PROTOCOL_FEATURES = PROTOCOL_REPLY_ACK | PROTOCOL_CONFIG
TURNS_PER_WAKE_UP = 64  # then epoll is asked again, so that no socket starves while the guest is busy

log = get_logger("vsock-device")


@dataclass(slots=True)
class Queue:
    """What QEMU has said about one ring."""

    size: int = 0
    base: int = 0
    addresses: tuple[int, int, int] | None = None
    kick: int = -1
    call: int = -1
    enabled: bool = False

    def close(self) -> None:
        for fd in (self.kick, self.call):
            if fd >= 0:
                os.close(fd)
        self.kick = self.call = -1


class Backend:
    """One QEMU's session."""

    def __init__(
        self, channel: socket.socket, guest_cid: int, dial: Dial, max_connections: int = MAX_CONNECTIONS
    ) -> None:
        """Serve the device of guest `guest_cid` over the connected `channel`."""
        self._channel, self._guest_cid = channel, guest_cid
        self.epoll = select.epoll()
        self.device = VsockDevice(guest_cid, self.epoll, dial, max_connections)
        self._queues = [Queue(), Queue()]
        self._rings: list[SplitRing | None] = [None, None]
        self._memory, self._maps = GuestMemory(), list[mmap.mmap]()
        self._own: dict[int, Callable[[], None]] = {}
        self.is_broken = False
        self.is_over = False
        self.failure: str | None = None
        """Why it is over, if QEMU has not just ended."""
        channel.setblocking(True)
        self.watch(channel.fileno(), self._on_message)

    def watch(self, fd: int, action: Callable[[], None]) -> None:
        """Call `action` whenever `fd` is readable."""
        self.epoll.register(fd, select.EPOLLIN)
        self._own[fd] = action

    def unwatch(self, fd: int) -> None:
        """Undo `watch`."""
        if self._own.pop(fd, None) is not None:
            self.epoll.unregister(fd)

    def run_once(self, timeout_s: float = -1) -> None:
        """Wait for something to happen and deal with it."""
        for fd, events in self.epoll.poll(timeout_s):
            if action := self._own.get(fd):
                action()
            elif self.device.owns(fd):
                self.device.on_socket(fd, events)
        self._serve()

    def _serve(self) -> None:
        """Move what can be moved, then tell the guest once for each ring that has news; its interrupts are dear."""
        if self.is_broken:
            return
        try:
            for _ in range(TURNS_PER_WAKE_UP):
                more, filled = self.device.take_from_guest(), self.device.give_to_guest()
                if not (more or filled or self.device.has_ready):
                    break
            else:
                self._kick_self()
        except (RingError, BadAddressError, PacketError) as exc:
            self._break(str(exc))
            return
        for index, ring in enumerate(self._rings):
            if ring is not None and ring.has_news():
                self._call(index)

    def _kick_self(self) -> None:
        """There is more than a turn's work: come back as soon as epoll has been asked."""
        with contextlib.suppress(OSError):
            os.eventfd_write(self._queues[TX].kick, 1)

    def _break(self, cause: str) -> None:
        log.error("the guest has broken its vsock device, which stops", cause=cause)
        self.is_broken = True
        self.device.reset()

    def _call(self, index: int) -> None:
        if self._queues[index].call >= 0:
            with contextlib.suppress(BlockingIOError):  # as many are waiting as a counter holds
                os.eventfd_write(self._queues[index].call, 1)

    # -- QEMU's messages

    def _on_message(self) -> None:
        fds: list[int] = []
        try:
            received = self._receive(fds)
            if received is None:
                self.is_over = True
                return
            reply = self._handle(received, fds)
        except (ConnectionResetError, BrokenPipeError):  # it ended with an answer of ours unread
            self.is_over = True
            return
        except (OSError, ProtocolError) as exc:
            self.failure = str(exc)
            self.is_over = True
            return
        finally:
            for fd in fds:
                os.close(fd)
        if reply is None and received.needs_reply:
            reply = proto.U64.pack(0)
        if reply is not None:
            with contextlib.suppress(BrokenPipeError):  # the next turn sees the end
                self._channel.sendall(proto.encode_reply(received.request, reply))

    def _receive(self, fds: list[int]) -> Message | None:
        """Return one message, its descriptors in `fds`; None at the end."""
        size = array.array("i").itemsize * proto.MAX_DESCRIPTORS
        header, ancillary, _flags, _address = self._channel.recvmsg(
            proto.HEADER.size, socket.CMSG_SPACE(size), socket.MSG_CMSG_CLOEXEC | socket.MSG_WAITALL
        )
        for level, kind, data in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                numbers = array.array("i")
                numbers.frombytes(data[: len(data) - len(data) % numbers.itemsize])
                fds += numbers
        if not header:
            return None
        if len(header) < proto.HEADER.size:
            raise ProtocolError("half a header")
        request, flags, count = proto.parse_header(header)
        payload = self._channel.recv(count, socket.MSG_WAITALL) if count else b""
        if len(payload) < count:
            raise ProtocolError("half a message")
        return Message(request, flags, payload)

    def _handle(self, message: Message, fds: list[int]) -> bytes | None:
        """Do what a message asks; return the payload of its reply if it has one."""
        match message.request:
            case Request.GET_FEATURES:
                return proto.U64.pack(FEATURES)
            case Request.GET_PROTOCOL_FEATURES:
                return proto.U64.pack(PROTOCOL_FEATURES)
            case Request.GET_QUEUE_NUM:
                return proto.U64.pack(len(self._queues))
            case Request.SET_FEATURES:
                if not message.u64() & VIRTIO_F_VERSION_1:
                    raise ProtocolError("a legacy device, whose layout is another (virtio-mmio.force-legacy=false)")
            case Request.SET_PROTOCOL_FEATURES | Request.SET_OWNER | Request.RESET_OWNER | Request.SET_CONFIG:
                pass
            case Request.GET_CONFIG:
                return self._config(message)
            case Request.SET_MEM_TABLE:
                self._set_memory(message.regions(), fds)
            case Request.SET_VRING_NUM:
                index, size = message.vring_state()
                if not 0 < size <= MAX_RING_SIZE or size & (size - 1):
                    raise ProtocolError(f"a ring of {size}")
                self._queue(index).size = size
            case Request.SET_VRING_BASE:
                index, base = message.vring_state()
                self._queue(index).base = base & 0xFFFF
            case Request.SET_VRING_ADDR:
                index, descriptors, used, available = message.vring_address()
                self._queue(index).addresses = (descriptors, used, available)
            case Request.SET_VRING_ENABLE:
                index, enabled = message.vring_state()
                self._queue(index).enabled = bool(enabled)
                self._set_up_rings()
            case Request.SET_VRING_KICK | Request.SET_VRING_CALL | Request.SET_VRING_ERR:
                self._set_descriptor(message, fds)
            case Request.GET_VRING_BASE:
                return self._stop_ring(message.vring_state()[0])
            case _:
                raise ProtocolError(f"request {message.request}, which was not offered")
        return None

    def _config(self, message: Message) -> bytes:
        """Answer with struct virtio_vsock_config: the guest's CID, 64 bits."""
        offset, size = message.config()
        space = proto.U64.pack(self._guest_cid)
        if offset + size > len(space):
            return message.payload[:0]  # an empty payload is the protocol's "no"
        return proto.CONFIG.pack(offset, size, 0) + space[offset : offset + size]

    def _queue(self, index: int) -> Queue:
        if index >= len(self._queues):
            raise ProtocolError(f"queue {index}")
        return self._queues[index]

    def _set_memory(self, regions: list[tuple[int, int, int, int]], fds: list[int]) -> None:
        if len(fds) != len(regions):
            raise ProtocolError(f"{len(regions)} regions with {len(fds)} descriptors")
        self._drop_rings()
        found, maps = [], []
        for (guest, size, user, offset), fd in zip(regions, fds, strict=True):
            if offset + size > os.fstat(fd).st_size:
                raise ProtocolError("a region beyond the end of its file")
            mapped = mmap.mmap(fd, offset + size)
            maps.append(mapped)
            found.append(Region(guest, user, memoryview(mapped)[offset : offset + size]))
        # the old maps go when the last view of them has gone
        self._memory, self._maps = GuestMemory(found), maps
        self._set_up_rings()

    def _set_descriptor(self, message: Message, fds: list[int]) -> None:
        value = message.u64()
        queue = self._queue(value & 0xFF)
        fd = -1 if value & proto.NO_DESCRIPTOR or not fds else fds.pop(0)
        if message.request == Request.SET_VRING_KICK:
            if queue.kick >= 0:
                self.unwatch(queue.kick)
                os.close(queue.kick)
            queue.kick = fd
            if fd >= 0:
                os.set_blocking(fd, False)
                self.watch(fd, lambda: _drain_counter(fd))
            self._set_up_rings()
        elif message.request == Request.SET_VRING_CALL:
            if queue.call >= 0:
                os.close(queue.call)
            queue.call = fd
            if fd >= 0:
                os.set_blocking(fd, False)
        elif fd >= 0:
            os.close(fd)

    def _set_up_rings(self) -> None:
        """Start each ring of which everything is known; a ring that runs goes on."""
        for index, queue in enumerate(self._queues):
            if self._rings[index] is None and queue.addresses and queue.size and queue.kick >= 0 and queue.enabled:
                descriptors, used, available = queue.addresses
                sizes = SplitRing.sizes(queue.size)
                try:
                    self._rings[index] = SplitRing(
                        queue.size,
                        self._memory.user(descriptors, sizes[0]),
                        self._memory.user(available, sizes[1]),
                        self._memory.user(used, sizes[2]),
                        self._memory,
                        queue.base,
                    )
                except (BadAddressError, TypeError, ValueError) as exc:
                    self._break(f"a ring that is not in its memory: {exc}")
        self.device.attach(self._rings[RX], self._rings[TX])

    def _stop_ring(self, index: int) -> bytes:
        queue, ring = self._queue(index), self._rings[index]
        base = ring.next_available if ring is not None else queue.base
        if queue.kick >= 0:
            self.unwatch(queue.kick)
        self._rings[index] = None
        self.device.reset()  # a driver that stops a queue resets the device
        queue.close()
        queue.enabled, self.is_broken = False, False
        return proto.VRING_STATE.pack(index, base)

    def _drop_rings(self) -> None:
        for index, ring in enumerate(self._rings):
            if ring is not None:
                self._queues[index].base = ring.next_available
                self._rings[index] = None
        self.device.attach(None, None)

    def close(self) -> None:
        """Let go of everything."""
        self.device.reset()
        for queue in self._queues:
            queue.close()
        self.epoll.close()
        self._channel.close()


def _drain_counter(fd: int) -> None:
    with contextlib.suppress(BlockingIOError):
        os.eventfd_read(fd)
