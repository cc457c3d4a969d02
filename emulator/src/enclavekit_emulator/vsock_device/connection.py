# SPDX-License-Identifier: Apache-2.0
"""One connection between the guest and a socket of ours: states, credit in both directions, what to say next. Pure.

Credit (virtio 1.2, 5.10.6.3): each side says how much it buffers (buf_alloc) and how much of it was taken (fwd_cnt);
the other never has more on the way than buf_alloc - (sent - fwd_cnt). All counters are modulo 2**32.

What the guest is told is kept as a set of things still to say, not as a queue: however long it gives us no buffer to
say them in, the state stays this small.

    who connects          REQUEST         answer                      then
    the guest             from guest      RESPONSE or RST to guest    OPEN
    a socket of ours      to guest        RESPONSE or RST from guest  OPEN
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from enclavekit_emulator.vsock_device.packet import SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, Op, Packet

BUFFER_BYTES = 256 * 1024  # per connection, what the guest may send ahead of a slow reader; Linux's own default
WRAP = 0xFFFFFFFF


class State(enum.Enum):
    """Where a connection stands."""

    ANSWERING = "answering"
    """The guest has asked; RESPONSE is still to be said."""
    ASKING = "asking"
    """We have asked, or are about to; the guest has not answered."""
    OPEN = "open"
    CLOSED = "closed"
    """Nothing more comes; a RST may still have to be said."""


class Event(enum.Enum):
    """What the owner of the socket has to do after a packet."""

    CONNECTED = "connected"
    """The guest has accepted: tell whoever asked."""
    REFUSED = "refused"
    PAYLOAD = "payload"
    """Write the payload to the socket."""
    GUEST_SENT_ALL = "guest sent all"
    """Shut the socket for writing once what is buffered has gone."""
    GUEST_READS_NO_MORE = "guest reads no more"
    """Read no more from the socket."""
    RESET = "reset"
    """Close the socket at once."""
    CREDIT = "credit"
    """There may be room again: read from the socket."""


@dataclass(slots=True)
class Connection:
    """The state of one connection; the key of the table it is kept in is (guest port, peer CID, peer port)."""

    guest_cid: int
    guest_port: int
    peer_cid: int
    peer_port: int
    state: State
    peer_buf_alloc: int = 0
    """The guest's buffer; the peer is the other side of the protocol, as in the virtio text."""
    peer_fwd_cnt: int = 0
    sent: int = 0
    """Bytes of payload given to the guest."""
    received: int = 0
    taken: int = 0
    """Of `received`, what the socket has taken: our fwd_cnt."""
    told_taken: int = 0
    guest_sends: bool = True
    guest_reads: bool = True
    we_send: bool = True
    """Our socket has not reached its end."""
    still_to_say: set[Op] = field(default_factory=set)
    shutdown_flags: int = 0

    @property
    def credit(self) -> int:
        """Bytes that the guest has room for."""
        return max(self.peer_buf_alloc - ((self.sent - self.peer_fwd_cnt) & WRAP), 0)

    @property
    def buffered(self) -> int:
        """Bytes received and not taken by the socket."""
        return (self.received - self.taken) & WRAP

    def on_packet(self, packet: Packet) -> list[Event]:
        """Take one packet from the guest that belongs to this connection."""
        if self.state is State.CLOSED:
            return []
        events: list[Event] = []
        if packet.op in (Op.RESPONSE, Op.RW, Op.CREDIT_UPDATE, Op.CREDIT_REQUEST, Op.SHUTDOWN):
            self.peer_buf_alloc, self.peer_fwd_cnt = packet.buf_alloc, packet.fwd_cnt
            events.append(Event.CREDIT)
        match packet.op:
            case Op.RST:
                refused = self.state is State.ASKING
                self.state = State.CLOSED
                self.still_to_say.clear()
                return [Event.REFUSED if refused else Event.RESET]
            case Op.RESPONSE if self.state is State.ASKING:
                self.state = State.OPEN
                return [Event.CONNECTED, *events]
            case Op.RW if self.state is State.OPEN and self.guest_sends:
                if packet.length > BUFFER_BYTES - self.buffered:
                    return self._reset()  # it was told how much room there is
                self.received = (self.received + packet.length) & WRAP
                return [*events, Event.PAYLOAD] if packet.length else events
            case Op.SHUTDOWN if self.state is State.OPEN:
                return events + self._on_shutdown(packet.flags)
            case Op.CREDIT_UPDATE if self.state is State.OPEN:
                return events
            case Op.CREDIT_REQUEST if self.state is State.OPEN:
                self.still_to_say.add(Op.CREDIT_UPDATE)
                return events
        return self._reset()

    def _on_shutdown(self, flags: int) -> list[Event]:
        events = []
        if flags & SHUTDOWN_SEND and self.guest_sends:
            self.guest_sends = False
            events.append(Event.GUEST_SENT_ALL)
        if flags & SHUTDOWN_RECEIVE and self.guest_reads:
            self.guest_reads = False
            events.append(Event.GUEST_READS_NO_MORE)
        return events

    def _reset(self) -> list[Event]:
        self.abort()
        return [Event.RESET]

    def abort(self) -> None:
        """Our side is lost: tell the guest, forget the rest."""
        self.state = State.CLOSED
        self.still_to_say = {Op.RST}

    def accept(self) -> None:
        """The socket that the guest asked for is connected."""
        self.state = State.OPEN
        self.still_to_say.add(Op.RESPONSE)

    def on_sent(self, count: int) -> None:
        """`count` bytes of payload were given to the guest, in packets with our counters."""
        self.sent = (self.sent + count) & WRAP
        self.note_told()

    def on_taken(self, count: int) -> None:
        """The socket has taken `count` bytes; says so to the guest before it runs out of room."""
        self.taken = (self.taken + count) & WRAP
        if (self.taken - self.told_taken) & WRAP >= BUFFER_BYTES // 4:
            self.still_to_say.add(Op.CREDIT_UPDATE)

    def on_socket_end(self) -> None:
        """The socket will give no more: the guest reads its end after what is on the way."""
        if self.we_send:
            self.we_send = False
            self._say_shutdown(SHUTDOWN_SEND)

    def on_socket_deaf(self) -> None:
        """The socket takes no more, and all that it will ever give has been given."""
        self._say_shutdown(SHUTDOWN_BOTH)

    def _say_shutdown(self, flags: int) -> None:
        self.shutdown_flags |= flags
        self.still_to_say.add(Op.SHUTDOWN)

    @property
    def is_over(self) -> bool:
        """Both directions have ended and the guest has closed: what is left is to say RST, as its close waits for."""
        return not self.guest_sends and not self.guest_reads and not self.buffered

    def next_packet(self) -> Packet | None:
        """Return what is to be said next, which counts as said; None if there is nothing."""
        for op in (Op.RST, Op.REQUEST, Op.RESPONSE, Op.CREDIT_UPDATE, Op.SHUTDOWN):
            if op in self.still_to_say:
                self.still_to_say.discard(op)
                self.note_told()
                return self.packet(op, flags=self.shutdown_flags if op is Op.SHUTDOWN else 0)
        return None

    def note_told(self) -> None:
        """A packet with our counters has gone out."""
        self.told_taken = self.taken
        self.still_to_say.discard(Op.CREDIT_UPDATE)

    def packet(self, op: Op, length: int = 0, flags: int = 0) -> Packet:
        """Return a packet to the guest with our counters."""
        return Packet(
            self.peer_cid,
            self.guest_cid,
            self.peer_port,
            self.guest_port,
            op,
            length,
            flags,
            BUFFER_BYTES,
            self.taken,
        )


def reset_for(packet: Packet) -> Packet:
    """Return the RST that answers a packet of no connection."""
    return Packet(packet.dst_cid, packet.src_cid, packet.dst_port, packet.src_port, Op.RST, type=packet.type)
