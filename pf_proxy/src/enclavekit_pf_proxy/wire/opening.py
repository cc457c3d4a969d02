# SPDX-License-Identifier: Apache-2.0
"""The first bytes of an accepted connection: a PROXY header, then a destination, each only where expected. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from enclavekit_core.address import TcpAddress
from enclavekit_core.errors import RemoteProtocolError
from enclavekit_core.proxy_protocol import MAX_V2_BYTES, Proxied, decode_proxied

from enclavekit_pf_proxy.wire import request
from enclavekit_pf_proxy.wire.destination import decode_destination
from enclavekit_pf_proxy.wire.request import Protocol

# bytes are fed as they come from the socket: the longest headers, and as much of the stream behind them
MAX_OPENING_BYTES = MAX_V2_BYTES + request.MAX_BODY_BYTES + request.HEAD.size + 64 * 1024


@dataclass(frozen=True, slots=True)
class Opening:
    """What was said before the stream."""

    proxied: Proxied | None = None
    destination: TcpAddress | None = None
    source: TcpAddress | None = None
    connection_id: int | None = None
    wants_reply: bool = False
    """The versioned header, which is answered."""
    rest: bytes = b""
    """The stream's first bytes, which came with it."""
    protocol: Protocol = Protocol.TCP
    """What carries it to the destination; the Rust framework's header knows TCP alone."""


class OpeningDecoder:
    """Collects bytes until all that is expected is there."""

    def __init__(self, *, expects_proxied: bool, expects_destination: bool) -> None:
        self._expects_proxied, self._expects_destination = expects_proxied, expects_destination
        self._data = b""
        self._proxied: Proxied | None = None
        self.wants_reply = False
        """Whether the peer can be told what is wrong: known from its first byte on."""

    def feed(self, data: bytes) -> Opening | None:
        """Take bytes; return the opening once it is whole. Raises RemoteProtocolError."""
        self._data += data
        if len(self._data) > MAX_OPENING_BYTES:
            raise RemoteProtocolError(f"cannot read header: more than {MAX_OPENING_BYTES} bytes before its end")
        if self._expects_proxied and self._proxied is None:
            found = decode_proxied(self._data)
            if found is None:
                return None
            self._proxied, used = found
            self._data = self._data[used:]
        if not self._expects_destination:
            return Opening(proxied=self._proxied, connection_id=self._given_id(), rest=self._data)
        if not self._data:
            return None
        return self._decode_request() if self._data[0] == request.MARKER else self._decode_destination()

    def feed_eof(self) -> None:
        """The peer ended before its header did. Raises RemoteProtocolError."""
        raise RemoteProtocolError("cannot read header: the connection ended")

    def _decode_destination(self) -> Opening | None:
        found = decode_destination(self._data)
        if found is None:
            return None
        destination, used = found
        return Opening(self._proxied, destination, connection_id=self._given_id(), rest=self._data[used:])

    def _given_id(self) -> int | None:
        return self._proxied.connection_id if self._proxied is not None else None

    def _decode_request(self) -> Opening | None:
        self.wants_reply = True
        found = request.decode_request(self._data)
        if found is None:
            return None
        asked, used = found
        return Opening(
            self._proxied, asked.destination, asked.source, asked.connection_id, True, self._data[used:], asked.protocol
        )
