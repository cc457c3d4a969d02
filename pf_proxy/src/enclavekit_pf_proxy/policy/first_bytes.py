# SPDX-License-Identifier: Apache-2.0
"""What a connection's first bytes show about whom it is for: TLS server name or HTTP host. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from enclavekit_core.host_names import normalise_name

from enclavekit_pf_proxy.passage import CheckBytes, Passage
from enclavekit_pf_proxy.policy.client_hello import MAX_HELLO_BYTES, Hello, HelloReader, MalformedHello
from enclavekit_pf_proxy.policy.http_requests import MalformedRequest, RequestReader
from enclavekit_pf_proxy.policy.later_hellos import LaterHellos

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


def show_hello(hello: Hello) -> Shown:
    """Return what there is to see in a ClientHello."""
    if hello.server_name is None:
        return Shown(encrypted=hello.encrypted)
    name = normalise_name(hello.server_name.decode("ascii", "replace"))
    # malformed: an address, or nothing that DNS could have answered
    return MALFORMED if name is None else Shown(name, hello.encrypted)


class FirstBytes:
    """Collects bytes until it is clear what they show."""

    def __init__(self) -> None:
        self.data = b""
        """All bytes fed: the upstream gets them unchanged."""
        self._hello: HelloReader | None = None
        self.requests: RequestReader | None = None
        """Of plain HTTP: what has read the requests so far, and is to be fed all that follows."""
        self.later: LaterHellos | None = None
        """Of TLS: what is to be fed all that follows, until it is over."""

    def feed(self, data: bytes) -> Shown | None:
        """Take bytes; return what they show, None if more are needed."""
        self.data += data
        if not self.data:
            return None
        if self.requests is not None:
            return self._show_request(self.requests, data)
        if self._hello is not None:
            return self._show_hello(self._hello, data)
        if self.data[0] == TLS_HANDSHAKE:
            self._hello = HelloReader()
            return self._show_hello(self._hello, self.data)
        if any(self.data.startswith(method + b" ") for method in METHODS):
            self.requests = RequestReader()
            return self._show_request(self.requests, self.data)
        could_be = any((method + b" ").startswith(self.data) for method in METHODS)
        return None if could_be and len(self.data) < LONGEST_METHOD else NOTHING

    def follow(self, name: str | None, judge: Callable[[Shown], bool]) -> CheckBytes | None:
        """Return what is asked about all that comes later; None if nothing needs to be.

        Args: name: whom the connection is allowed for. judge: says whether what is shown later is allowed.
        """
        requests, later = self.requests, self.later

        def check_requests(data: bytes) -> Passage:
            assert requests is not None
            try:
                seen = [Shown(other) for other in requests.feed(data) if other != name]
            except MalformedRequest:
                seen = [MALFORMED]
            return Passage.ALLOWED if all(map(judge, seen)) else Passage.REFUSED

        def check_hellos(data: bytes) -> Passage:
            assert later is not None
            try:
                seen = [show_hello(hello) for hello in later.feed(data)]
            except MalformedHello:
                seen = [MALFORMED]
            if not all(map(judge, seen)):
                return Passage.REFUSED
            return Passage.UNWATCHED if later.is_over else Passage.ALLOWED

        if requests is not None:
            return check_requests
        return check_hellos if later is not None and not later.is_over else None

    def give_up(self) -> Shown:
        """No more bytes came in time, or at all: half a name is none."""
        return MALFORMED if self.data else NOTHING

    def _show_hello(self, reader: HelloReader, data: bytes) -> Shown | None:
        if len(self.data) > MAX_FIRST_BYTES:
            return MALFORMED
        try:
            hello = reader.feed(data)
            if hello is None:
                return None
            self.later = LaterHellos(hello)
            if self.later.feed(reader.rest):
                return MALFORMED  # a server asks for a second one, none is sent before
        except MalformedHello:
            return MALFORMED
        return show_hello(hello)

    def _show_request(self, requests: RequestReader, data: bytes) -> Shown | None:
        try:
            names = requests.feed(data)
        except MalformedRequest:
            return MALFORMED
        if not names:
            return None
        if len(set(names)) > 1:
            return MALFORMED  # sent at once: which of them the connection is for cannot be said
        return Shown(names[0]) if names[0] is not None else NOTHING
