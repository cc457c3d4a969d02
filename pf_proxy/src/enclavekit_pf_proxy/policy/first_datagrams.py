# SPDX-License-Identifier: Apache-2.0
"""What a UDP session's datagrams show about whom they are for: the server name of QUIC. As `FirstBytes`. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from enclavekit_pf_proxy.passage import CheckDatagram
from enclavekit_pf_proxy.policy.client_hello import MalformedHello
from enclavekit_pf_proxy.policy.first_bytes import MALFORMED, NOTHING, Shown, show_hello
from enclavekit_pf_proxy.quic.packets import UnreadableDatagram, begins_connection, is_long
from enclavekit_pf_proxy.quic.session import MAX_HELD, MAX_HELD_BYTES, QuicSession
from enclavekit_pf_proxy.wire.datagrams import DatagramDecoder


class FirstDatagrams:
    """Collects datagrams until it is clear what they show."""

    def __init__(self, session: QuicSession, clock: Callable[[], float]) -> None:
        self.data = b""
        """All that was fed: the upstream gets it unchanged."""
        self.session = session
        self._clock = clock
        self._decoder = DatagramDecoder()
        self._count = 0
        self._seen: set[Shown] = set()

    def feed(self, data: bytes) -> Shown | None:
        """Take datagrams as the upstream's stream has them; return what they show, None if more are needed."""
        self.data += data
        for datagram in self._decoder.feed(data):
            self._count += 1
            if self._count == 1 and not begins_connection(datagram):
                return NOTHING
            try:
                connection = self.session.read(datagram, self._clock())
            except (UnreadableDatagram, MalformedHello):
                return MALFORMED
            if connection is not None:
                self._seen |= {show_hello(hello) for hello in connection.hellos}
                connection.hellos.clear()
        if len(self._seen) > 1 or self._count > MAX_HELD or len(self.data) > MAX_HELD_BYTES:
            return MALFORMED
        return next(iter(self._seen)) if self._seen and self.session.is_whole else None

    def follow(self, name: str | None, judge: Callable[[Shown], bool]) -> CheckDatagram:
        """Return what is asked about all further datagrams. `judge` says whether what one shows is allowed.

        A client may have any number of connections on one socket: each of them is judged, and nothing of a hello goes
        on before all of it was seen.
        """

        def check(datagram: bytes) -> Sequence[bytes] | None:
            if not is_long(datagram):
                return (datagram,)
            try:
                connection = self.session.read(datagram, self._clock())
                if connection is None:
                    return (datagram,)
                hellos, connection.hellos = connection.hellos, []
                if not all(judge(show_hello(hello)) for hello in hellos):
                    return None
                if not connection.stream.is_whole:
                    connection.hold(datagram)
                    return ()
            except UnreadableDatagram:
                return ()  # lost, as datagrams may be
            except MalformedHello:
                judge(MALFORMED)
                return None
            held, connection.held = connection.held, []
            return (*held, datagram)

        return check

    def give_up(self) -> Shown:
        """No more came in time: half a name is none."""
        return MALFORMED if self.data else NOTHING
