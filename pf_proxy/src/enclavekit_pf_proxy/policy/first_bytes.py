# SPDX-License-Identifier: Apache-2.0
"""What a connection's first bytes show about whom it is for: TLS server name or HTTP host. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

import h11

from enclavekit_pf_proxy.policy.client_hello import MAX_HELLO_BYTES, MalformedHello, read_hello
from enclavekit_pf_proxy.policy.names import normalise_name

MAX_HEAD_BYTES = 16 * 1024  # of an HTTP request; servers take 8 KiB as a rule
MAX_FIRST_BYTES = MAX_HELLO_BYTES + 8 * 1024  # records' headers of a hello in small pieces included
TLS_HANDSHAKE = 22
METHODS = (b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"PATCH", b"TRACE", b"CONNECT")
LONGEST_METHOD = max(map(len, METHODS)) + 1


@dataclass(frozen=True, slots=True)
class Shown:
    """What there is to see."""

    name: str | None = None
    """In normal form."""
    encrypted: bool = False
    """There is a name that cannot be seen."""
    malformed: bool = False


MALFORMED = Shown(malformed=True)
NOTHING = Shown()


class FirstBytes:
    """Collects bytes until it is clear what they show."""

    def __init__(self) -> None:
        self.data = b""
        """All bytes fed: the upstream gets them unchanged."""

    def feed(self, data: bytes) -> Shown | None:
        """Take bytes; return what they show, None if more are needed."""
        self.data += data
        if not self.data:
            return None
        if len(self.data) > MAX_FIRST_BYTES:
            return MALFORMED
        if self.data[0] == TLS_HANDSHAKE:
            return self._show_hello()
        if any(self.data.startswith(method + b" ") for method in METHODS):
            return self._show_request()
        could_be = any((method + b" ").startswith(self.data) for method in METHODS)
        return None if could_be and len(self.data) < LONGEST_METHOD else NOTHING

    def give_up(self) -> Shown:
        """No more bytes came in time, or at all: half a name is none."""
        return MALFORMED if self.data else NOTHING

    def _show_hello(self) -> Shown | None:
        try:
            hello = read_hello(self.data)
        except MalformedHello:
            return MALFORMED
        if hello is None:
            return None
        if hello.server_name is None:
            return Shown(encrypted=hello.encrypted)
        name = normalise_name(hello.server_name.decode("ascii", "replace"))
        if name is None:
            return MALFORMED  # an address, or nothing that DNS could have answered
        return Shown(name, hello.encrypted)

    def _show_request(self) -> Shown | None:
        parser = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD_BYTES)
        try:
            parser.receive_data(self.data)
            event = parser.next_event()
        except h11.RemoteProtocolError:
            return MALFORMED
        if event is h11.NEED_DATA:
            return None
        if not isinstance(event, h11.Request):
            return MALFORMED
        hosts = [_host_of(value.decode("latin-1")) for key, value in event.headers if key == b"host"]
        target = event.target.decode("latin-1")
        if not target.startswith(("/", "*")) and event.method != b"CONNECT":
            try:
                hosts.append(urlsplit(target).hostname or "")
            except ValueError:
                return MALFORMED
        elif event.method == b"CONNECT":
            hosts.append(_host_of(target))
        names = {normalise_name(host) for host in hosts}
        if len(names) > 1:
            return MALFORMED  # servers disagree about which of them counts
        return Shown(names.pop()) if names else NOTHING


def _host_of(text: str) -> str:
    """Return the host of `host[:port]`, as the Host header and CONNECT have it."""
    if text.startswith("["):
        return text
    host, colon, port = text.partition(":")
    return host if not colon or (port.isascii() and port.isdigit()) else text
