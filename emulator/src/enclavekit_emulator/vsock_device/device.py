# SPDX-License-Identifier: Apache-2.0
"""The meeting of a guest's rings with sockets: bytes go from one to the other without becoming Python objects.

What the guest sends is written from its own memory with sendmsg(2), what a socket has is read into its own memory with
recvmsg(2), many buffers a call. Only what a slow socket does not take is copied, up to the room the guest was told of.

Nothing here blocks, and nothing grows with what the guest does: connections are bounded, each says what it has to say
from a set of at most five things, and while too many resets of unknown connections wait for buffers, no more is taken.
"""

from __future__ import annotations

import select
import socket
from collections import deque
from collections.abc import Callable

from enclavekit_emulator.vsock_device.chain_views import scatter, split_views, split_writable, trim, write_header
from enclavekit_emulator.vsock_device.connection import Connection, Event, State, reset_for
from enclavekit_emulator.vsock_device.links import UNWATCHED, Key, Link, Links
from enclavekit_emulator.vsock_device.packet import (
    HEADER_BYTES,
    TYPE_STREAM,
    Op,
    Packet,
    PacketError,
    decode_packet,
    encode_packet,
)
from enclavekit_emulator.vsock_device.split_ring import Chain, RingError, SplitRing

MAX_CONNECTIONS = 4096
MAX_WAITING_RESETS = 256  # of packets without a connection; then the guest is not listened to until it gives buffers
CHAINS_PER_TURN = 64  # of one connection: 256 KiB in Linux's buffers, then the next has its turn
PACKETS_PER_TURN = 256  # taken from the guest, then its sockets have their turn
PEER_PORT_BASE = 0x4000_0000  # host-side ports, apart from those that services listen on

Answer = Callable[[socket.socket | None], None]  # a connected non-blocking socket, or None: there can be none
Dial = Callable[[int, int, Answer], None]  # (CID, port): answers once, at once or later


class VsockDevice:
    """One guest's device. Its owner calls `on_socket`, `take_from_guest`, `give_to_guest`, then waits on `epoll`."""

    def __init__(self, guest_cid: int, epoll: select.epoll, dial: Dial, max_connections: int = MAX_CONNECTIONS) -> None:
        """Serve guest `guest_cid`, which reaches others by `dial`; each connection costs a descriptor."""
        self.guest_cid, self._max_connections = guest_cid, max_connections
        self._links, self._dial = Links(epoll), dial
        self._resets: deque[Packet] = deque()
        self._next_port = PEER_PORT_BASE
        self._rx: SplitRing | None = None
        self._tx: SplitRing | None = None

    @property
    def connections(self) -> int:
        return len(self._links)

    def attach(self, rx: SplitRing | None, tx: SplitRing | None) -> None:
        """Use these rings from now on."""
        self._rx, self._tx = rx, tx

    def reset(self) -> None:
        """The guest's driver is gone, and with it every connection."""
        self._rx = self._tx = None
        self._links.drop_all()
        self._resets.clear()

    def owns(self, fd: int) -> bool:
        """Say whether an event of epoll's is for `on_socket`."""
        return fd in self._links.by_fd

    # -- connections that a socket of ours asks for

    def ask(self, sock: socket.socket, peer_cid: int, port: int, on_answer: Callable[[bool], None]) -> bool:
        """Ask the guest for a connection to `port` on behalf of `sock`; False if there can be none.

        The socket is the device's from then on; `on_answer` says what has become of it, before any byte is moved.
        """
        if self._rx is None or len(self._links) >= self._max_connections:
            return False
        key = (port, peer_cid, self._choose_port(port, peer_cid))
        connection = Connection(self.guest_cid, port, peer_cid, key[2], State.ASKING)
        connection.still_to_say.add(Op.REQUEST)
        self._links.add(Link(connection, key, sock, on_answer=on_answer))
        return True

    def abandon(self, sock: socket.socket) -> None:
        """Whoever asked waits no longer."""
        link = self._links.by_fd.get(sock.fileno())
        if link is not None and link.connection.state is State.ASKING:
            self._links.abort(link)

    def _choose_port(self, port: int, peer_cid: int) -> int:
        while (port, peer_cid, self._next_port) in self._links.by_key:
            self._next_port += 1
        chosen = self._next_port
        self._next_port = PEER_PORT_BASE + (chosen + 1 - PEER_PORT_BASE) % PEER_PORT_BASE
        return chosen

    # -- events

    def on_socket(self, fd: int, events: int) -> None:
        """A socket is readable or writable."""
        link = self._links.by_fd[fd]
        gone = events & (select.EPOLLHUP | select.EPOLLERR)
        if link.pending and (gone or events & select.EPOLLOUT):
            self._links.drain(link)
        if link.sock is None or not (gone or events & select.EPOLLIN):
            return
        if link.connection.state is State.ASKING:
            self._links.abort(link)  # it has nothing to say before the answer but its end
        elif link.mask & select.EPOLLIN:
            self._links.watch(link, link.mask & ~select.EPOLLIN)
            self._links.make_ready(link)
        elif gone and not link.pending:
            self._links.watch(link, UNWATCHED)  # epoll would report it for ever; the guest's credit is what we wait for

    def take_from_guest(self) -> bool:
        """Take what the guest has sent; True if there may be more. Raises RingError, BadAddressError, PacketError."""
        if self._tx is None:
            return False
        for _ in range(PACKETS_PER_TURN):
            if len(self._resets) >= MAX_WAITING_RESETS:
                return False
            chain = self._tx.take()
            if chain is None:
                return False
            self._on_chain(chain)
            self._tx.give_back(chain.head, 0)
        return True

    def give_to_guest(self) -> bool:
        """Fill the guest's buffers; True if any was. Raises RingError, BadAddressError."""
        rx = self._rx
        if rx is None:
            return False
        gave = self._say(rx)
        for _ in range(len(self._links.ready)):
            if self._links.to_say or not rx.waiting():
                break
            link = self._links.ready.popleft()
            link.is_ready = False
            gave |= self._fill(link, rx)
        return self._say(rx) or gave  # what filling has found out: ends, lost sockets

    def _say(self, rx: SplitRing) -> bool:
        """Give the guest all packets without payload that wait; True if there was one."""
        said = False
        while (self._resets or self._links.to_say) and (chain := rx.take()):
            packet = self._next_to_say()
            if packet is None:
                rx.put_back()
                break
            write_header(chain, encode_packet(packet))
            rx.give_back(chain.head, HEADER_BYTES)
            said = True
        return said

    @property
    def has_ready(self) -> bool:
        """Whether a socket has something for the guest and the guest has room."""
        return bool(self._links.ready) and self._rx is not None and self._rx.waiting() > 0

    # -- from the guest

    def _on_chain(self, chain: Chain) -> None:
        header, payload = split_views(chain.readable)
        packet = decode_packet(header)
        if sum(map(len, payload)) < packet.length:
            raise PacketError(f"a packet of {packet.length} bytes in a smaller buffer")
        key = (packet.src_port, packet.dst_cid, packet.dst_port)
        link = self._links.by_key.get(key)
        if packet.src_cid != self.guest_cid or packet.type != TYPE_STREAM:
            self._refuse(packet)
        elif link is not None:
            for event in link.connection.on_packet(packet):
                self._on_event(link, event, payload, packet.length)
            self._links.note(link)
        elif packet.op == Op.REQUEST:
            self._on_request(packet, key)
        else:
            self._refuse(packet)

    def _refuse(self, packet: Packet) -> None:
        if packet.op != Op.RST:  # which nothing answers
            self._resets.append(reset_for(packet))

    def _on_request(self, packet: Packet, key: Key) -> None:
        if len(self._links) >= self._max_connections or packet.dst_cid == self.guest_cid:
            self._refuse(packet)
            return
        connection = Connection(
            self.guest_cid, packet.src_port, packet.dst_cid, packet.dst_port, State.ANSWERING, packet.buf_alloc,
            packet.fwd_cnt,
        )  # fmt: skip
        link = Link(connection, key, None)
        self._links.by_key[key] = link
        self._dial(packet.dst_cid, packet.dst_port, lambda sock: self._on_dialled(link, sock))

    def _on_dialled(self, link: Link, sock: socket.socket | None) -> None:
        connection = link.connection
        if connection.state is not State.ANSWERING:  # the guest has given up, or its driver is gone
            if sock is not None:
                sock.close()
            return
        if sock is None:
            connection.abort()
            self._links.note(link)
            return
        connection.accept()
        link.sock = sock
        self._links.add(link)
        self._links.watch(link, select.EPOLLIN)

    def _on_event(self, link: Link, event: Event, payload: list[memoryview], length: int) -> None:
        match event:
            case Event.CONNECTED:
                self._links.answer(link, True)
                self._links.watch(link, select.EPOLLIN)
            case Event.REFUSED | Event.RESET:
                self._links.answer(link, False)
                self._links.close_socket(link)
            case Event.PAYLOAD:
                self._links.send(link, payload, length)
            case Event.GUEST_SENT_ALL | Event.GUEST_READS_NO_MORE:
                self._links.settle(link)
            case Event.CREDIT:
                if link.sock is not None and not link.is_ready and not link.mask & select.EPOLLIN:
                    self._links.make_ready(link)

    # -- to the guest

    def _fill(self, link: Link, rx: SplitRing) -> bool:
        """Read the socket into the guest's buffers, as far as its credit goes; True if any was filled."""
        connection, sock = link.connection, link.sock
        if sock is None or connection.state is not State.OPEN or not connection.we_send or not connection.guest_reads:
            return False
        room = connection.credit
        if not room:
            return False  # a packet with credit makes it ready again
        chains: list[tuple[Chain, list[memoryview], list[memoryview]]] = []
        views: list[memoryview] = []
        while room and len(chains) < CHAINS_PER_TURN and (chain := rx.take()):
            header, payload = split_writable(chain)
            payload = trim(payload, min(room, sum(map(len, payload))))
            if not payload:
                raise RingError("a receive buffer without room for a byte")
            room -= sum(map(len, payload))
            chains.append((chain, header, payload))
            views += payload
        try:
            count = sock.recvmsg_into(views)[0] if views else -1
        except (BlockingIOError, InterruptedError):
            count = -1
        except OSError:
            count = -2
        for _ in range(len(chains)):
            rx.put_back()
        if count <= 0:
            if count == -1:
                self._links.watch(link, (link.mask & ~UNWATCHED) | select.EPOLLIN)
            elif count == 0:
                connection.on_socket_end()
                self._links.settle(link)
                self._links.note(link)
            else:
                self._links.abort(link)
            return False
        self._hand_over(link, rx, chains, count)
        self._links.make_ready(link)
        return True

    def _hand_over(
        self, link: Link, rx: SplitRing, chains: list[tuple[Chain, list[memoryview], list[memoryview]]], count: int
    ) -> None:
        """Write the headers of `count` bytes that lie in `chains` already, and give those back."""
        for chain, header, payload in chains:
            here = min(count, sum(map(len, payload)))
            if not here:
                break
            scatter(header, encode_packet(link.connection.packet(Op.RW, here)))
            # the chain counts as taken from here; its content cannot have been read before
            rx.next_available = (rx.next_available + 1) & 0xFFFF
            rx.give_back(chain.head, HEADER_BYTES + here)
            link.connection.on_sent(here)
            count -= here

    def _next_to_say(self) -> Packet | None:
        if self._resets:
            return self._resets.popleft()
        while self._links.to_say:
            key, link = next(iter(self._links.to_say.items()))
            packet = link.connection.next_packet()
            if not link.connection.still_to_say:
                del self._links.to_say[key]
                if link.connection.state is State.CLOSED:
                    self._links.forget(link)
            if packet is not None:
                return packet
        return None
