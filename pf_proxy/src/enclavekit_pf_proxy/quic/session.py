# SPDX-License-Identifier: Apache-2.0
"""The QUIC connections that a UDP session's client begins, one or, over one socket, many. Pure.

A server tells connections apart by the ids in their packets, and takes the keys of Initial packets from the first one.
So every Initial packet of the session is opened with the keys of its own id and of all connections there are, and what
it says goes to the connection whose keys they were. Retry, and another version after negotiation, are new packets with
other keys, and are read as the first ones are.

A packet can be made that two keys open, each to something else, as AES-GCM does not bind them: it is malformed. So
is a second handshake of one id and version with other bytes: pieces of both might reach a server, and be a third.
A server that changes the version of a connection does so once it has the whole hello (RFC 9369 section 4.1).
"""

from __future__ import annotations

from collections import OrderedDict
from hashlib import sha256

from enclavekit_pf_proxy.policy.client_hello import Hello, MalformedHello
from enclavekit_pf_proxy.quic.crypto_stream import CryptoStream, read_crypto_frames
from enclavekit_pf_proxy.quic.packets import Kind, LongPacket, UnreadableDatagram, split_datagram
from enclavekit_pf_proxy.quic.protection import derive_keys, open_packet

MAX_CONNECTIONS = 32  # of a session that are remembered; the one used longest ago goes first
MAX_DATAGRAM_BYTES = 4096  # with Initial packets: clients do not know yet what a path takes, and send 1200 to 1452
MAX_HELD, MAX_HELD_BYTES = 32, 64 * 1024  # datagrams of a connection whose hello is not whole
MEMORY_S = 60.0  # servers give up on a handshake sooner
MAX_REMEMBERED = 16 * 1024


Key = tuple[int, bytes]
"""Version, and the destination's id in the first packet: what the keys of its Initial packets follow from."""


class HelloMemory:
    """Which hello was seen with which keys, whatever the session: there is one at a time."""

    def __init__(self) -> None:
        self._seen: OrderedDict[tuple[Key, int], tuple[bytes, float]] = OrderedDict()

    def admit(self, key: Key, offset: int, message: bytes, now: float) -> bool:
        """Note a message of a connection; return whether it is the only one for its place. Full, it admits no other."""
        digest = sha256(message).digest()
        known, until = self._seen.get((key, offset), (digest, 0.0))
        if known != digest and now < until:
            return False
        while self._seen and next(iter(self._seen.values()))[1] <= now:
            self._seen.popitem(last=False)
        if until <= now and len(self._seen) >= MAX_REMEMBERED:
            return False
        self._seen[key, offset] = (digest, now + MEMORY_S)
        self._seen.move_to_end((key, offset))
        return True


class QuicConnection:
    """One connection's beginning, from its client."""

    def __init__(self, key: Key) -> None:
        self.key = key
        self.largest = -1
        """Packet number."""
        self.stream = CryptoStream()
        self.hellos: list[Hello] = []
        """Those that nobody has judged yet."""
        self.held: list[bytes] = []
        """Datagrams that wait for the rest of a hello."""

    def hold(self, datagram: bytes) -> None:
        """Keep a datagram for later. Raises UnreadableDatagram if there are too many."""
        if len(self.held) >= MAX_HELD or sum(map(len, self.held)) + len(datagram) > MAX_HELD_BYTES:
            raise UnreadableDatagram("too many datagrams before the end of a hello")
        self.held.append(datagram)


class QuicSession:
    """What one client sends to one server."""

    def __init__(self, memory: HelloMemory) -> None:
        self._memory = memory
        self.connections: OrderedDict[Key, QuicConnection] = OrderedDict()

    @property
    def is_whole(self) -> bool:
        """Whether nothing of a hello is missing that has begun."""
        return all(one.stream.is_whole for one in self.connections.values())

    def read(self, datagram: bytes, now: float) -> QuicConnection | None:
        """Read a datagram's Initial packets; return whose they are, None if there are none.

        Raises: UnreadableDatagram: it must not be passed on; MalformedHello: nor anything else of this session.
        """
        packets = [packet for packet in split_datagram(datagram) if packet.kind is Kind.INITIAL]
        if not packets:
            return None
        if len(datagram) > MAX_DATAGRAM_BYTES:
            raise UnreadableDatagram("too long for Initial packets")
        found: dict[Key, QuicConnection] = {}
        for packet in packets:
            self._read_packet(packet, found)
        if len(found) > 1:
            raise MalformedHello("one datagram for two connections")
        (connection,) = found.values()
        for offset, message, hello in connection.stream.take_messages():
            if not self._memory.admit(connection.key, offset, message, now):
                raise MalformedHello("two hellos for one connection")
            connection.hellos.append(hello)
        return connection

    def _read_packet(self, packet: LongPacket, found: dict[Key, QuicConnection]) -> None:
        was_opened = False
        known = (first_id for _, first_id in self.connections)
        for first_id in dict.fromkeys((packet.destination_id, *known)):
            key = packet.version, first_id
            connection = self.connections.get(key) or QuicConnection(key)
            opened = open_packet(packet, derive_keys(*key), connection.largest)
            if opened is None:
                continue
            was_opened = True
            number, payload = opened
            connection.largest = max(connection.largest, number)
            for offset, piece in read_crypto_frames(payload):
                connection.stream.add(offset, piece)
            found[key] = self.connections[key] = connection
            self.connections.move_to_end(key)
        if not was_opened:
            raise UnreadableDatagram("not encrypted as Initial packets are")
        while len(self.connections) > MAX_CONNECTIONS:
            self.connections.popitem(last=False)
