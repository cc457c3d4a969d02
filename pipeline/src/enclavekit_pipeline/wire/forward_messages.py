# SPDX-License-Identifier: Apache-2.0
"""Messages of forwards: what is to be connected or listened on in the enclave. Pure.

The bytes of a forwarded connection are STDIN from the client and STDOUT from the enclave, each with its end: a
half-close is carried as it is. A stream that is closed before the end of its data is a connection that was reset.
"""

from __future__ import annotations

from enclavekit_core.address import TcpAddress, UnixAddress, parse_address
from enclavekit_core.errors import ConfigError

from enclavekit_pipeline.wire.messages import MAX_PATH_CHARS, Message, malformed

ForwardAddress = TcpAddress | UnixAddress


class DialRequest(Message, frozen=True, tag="dial", tag_field="verb"):
    """Connect to `target` in the enclave; the stream is that connection."""

    target: str
    """`tcp://HOST:PORT`, or `unix:///path` in the root that the request acts on."""
    system: bool = False

    def check(self) -> None:
        """Raises RemoteProtocolError."""
        decode_forward_address(self.target)

    @property
    def address(self) -> ForwardAddress:
        return decode_forward_address(self.target)


class ListenRequest(Message, frozen=True, tag="listen-remote", tag_field="verb"):
    """Listen on `listen` in the enclave; each connection there opens a stream to the client."""

    listen: str
    """As `target` of DialRequest; TCP port 0 is any free one."""
    system: bool = False

    def check(self) -> None:
        """Raises RemoteProtocolError."""
        address = decode_forward_address(self.listen)
        if isinstance(address, UnixAddress) and address.path.rpartition("/")[2] in ("", ".", ".."):
            raise malformed("the socket would have no name")

    @property
    def address(self) -> ForwardAddress:
        return decode_forward_address(self.listen)


class Listening(Message, frozen=True):
    """In OPENED of listen-remote."""

    address: str
    """What it listens on, with the port that 0 became."""


class Arrival(Message, frozen=True):
    """In OPEN from the enclave: somebody has connected to what a stream of the client's listens on."""

    listener: int
    """That stream's number."""


def decode_forward_address(text: str) -> ForwardAddress:
    """Raises RemoteProtocolError for what is neither TCP nor a Unix socket."""
    if len(text) > MAX_PATH_CHARS or not text.isprintable():
        raise malformed("no address, or too long an address")
    try:
        address = parse_address(text)
    except ConfigError as exc:
        raise malformed(str(exc)) from exc
    if not isinstance(address, TcpAddress | UnixAddress):
        raise malformed("the address is neither tcp:// nor unix://")
    return address
