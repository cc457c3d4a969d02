# SPDX-License-Identifier: Apache-2.0
"""The requests of a plain HTTP/1 connection, one after the other: for whom each of them is. Pure.

h11 parses. What servers read in different ways (line ends without CR, two framings of one body, a host in a target
that is no plain one) is refused, as the server might find a request where h11 sees a body, or another host. After a
request for another protocol (Upgrade, CONNECT) whatever follows is still read as requests: a server may not have
switched.
"""

from __future__ import annotations

import re

import h11
from enclavekit_core.host_names import normalise_name

MAX_HEAD_BYTES = 16 * 1024  # servers take 8 KiB as a rule
HEAD_END = b"\r\n\r\n"
VERSIONS = (b"1.0", b"1.1")
# without what parsers of URLs see differently: users, backslashes, a query or fragment right behind the host
ABSOLUTE_TARGET = re.compile(r"https?://([A-Za-z0-9._-]+)(?::[0-9]*)?(?:/.*)?", re.DOTALL)
STRAY_LINE_END = re.compile(rb"(?<!\r)\n|\r(?!\n)|\r\n[ \t]")  # the last is a folded line, RFC 9112 section 5.2


class MalformedRequest(Exception):
    """It is none, contradicts itself, or can be read in two ways."""


class RequestReader:
    """Reads what a client sends. Bytes may be passed on once they were fed: no request is whole before it was seen."""

    def __init__(self) -> None:
        self._head = b""
        self._body_bytes = 0
        """Left of a body whose length is known."""
        self._chunked: h11.Connection | None = None
        self._chunks_end = b""
        """The last bytes of a chunked body so far."""

    def feed(self, data: bytes) -> list[str | None]:
        """Return for whom the requests are that `data` completes the heads of; None: it does not say.

        Raises: MalformedRequest; then nothing of `data` may be passed on.
        """
        found: list[str | None] = []
        while data:
            if self._body_bytes:
                taken = min(self._body_bytes, len(data))
                self._body_bytes -= taken
                data = data[taken:]
            elif self._chunked is not None:
                data = self._read_chunks(data)
            else:
                data = self._read_head(data, found)
        return found

    def _read_head(self, data: bytes, found: list[str | None]) -> bytes:
        """Take bytes of a head; return what follows it."""
        seen = len(self._head)
        self._head += data
        end = self._head.find(HEAD_END, max(0, seen - len(HEAD_END) + 1))
        head = self._head if end < 0 else self._head[: end + len(HEAD_END)]
        if len(head) > MAX_HEAD_BYTES:
            raise MalformedRequest(f"a head of more than {MAX_HEAD_BYTES} bytes")
        # a CR at the end may get its LF still
        if STRAY_LINE_END.search(head, max(0, seen - 2), len(head) - head.endswith(b"\r")):
            raise MalformedRequest("a line that does not end in CRLF, or is folded")
        if end < 0:
            return b""
        rest, self._head = self._head[len(head) :], b""
        found.append(self._begin(head))
        return rest

    def _begin(self, head: bytes) -> str | None:
        """Parse a whole head, and prepare for its body."""
        parser = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD_BYTES)
        try:
            parser.receive_data(head)
            request = parser.next_event()
        except h11.RemoteProtocolError as exc:
            raise MalformedRequest(str(exc)) from exc
        if not isinstance(request, h11.Request) or request.http_version not in VERSIONS:
            raise MalformedRequest("no request of HTTP/1")
        lengths = [value for name, value in request.headers if name == b"content-length"]
        if any(name == b"transfer-encoding" for name, _ in request.headers):
            # h11 lets chunks win, as the RFC does; a server of HTTP/1.0 or an old proxy need not
            if lengths or request.http_version != b"1.1":
                raise MalformedRequest("two framings of one body")
            self._chunked, self._chunks_end = parser, b""
        elif lengths:
            self._body_bytes = int(lengths[0])  # h11 has refused two that differ
        return _name_of(request)

    def _read_chunks(self, data: bytes) -> bytes:
        """Take bytes of a chunked body; return what follows it."""
        parser = self._chunked
        assert parser is not None
        try:
            parser.receive_data(data)
            while isinstance(event := parser.next_event(), h11.Data):
                pass
        except h11.RemoteProtocolError as exc:
            raise MalformedRequest(str(exc)) from exc
        rest = b"" if event is h11.NEED_DATA else bytes(parser.trailing_data[0])
        self._chunks_end = (self._chunks_end + data[: len(data) - len(rest)])[-MAX_HEAD_BYTES:]
        if isinstance(event, h11.EndOfMessage):
            self._check_chunks_end(len(event.headers))
            self._chunked = None
        return rest

    def _check_chunks_end(self, trailers: int) -> None:
        """Raise MalformedRequest if the last lines of a body do not end in CRLF, or are folded: h11 takes both."""
        end = self._chunks_end
        lines = end.removesuffix(HEAD_END).split(b"\r\n")[-trailers:] if trailers else []
        if not end.endswith(HEAD_END) or any(b"\n" in line or b"\r" in line or line[:1] in b" \t" for line in lines):
            raise MalformedRequest("the end of a chunked body can be read in two ways")


def _name_of(request: h11.Request) -> str | None:
    """Return the host that a request names, in normal form. Raises MalformedRequest if it names two."""
    hosts = [_host_of(value.decode("latin-1")) for key, value in request.headers if key == b"host"]
    target = request.target.decode("latin-1")
    if request.method == b"CONNECT":
        hosts.append(_host_of(target))
    elif not target.startswith("/") and target != "*":
        absolute = ABSOLUTE_TARGET.fullmatch(target)
        if absolute is None:
            raise MalformedRequest("its target is no plain URL")
        hosts.append(absolute[1])
    names = {normalise_name(host) for host in hosts}
    if len(names) > 1:
        raise MalformedRequest("two hosts")  # servers disagree about which of them counts
    return names.pop() if names else None


def _host_of(text: str) -> str:
    """Return the host of `host[:port]`, as the Host header and CONNECT have it."""
    if text.startswith("["):
        return text
    host, colon, port = text.partition(":")
    return host if not colon or (port.isascii() and port.isdigit()) else text
