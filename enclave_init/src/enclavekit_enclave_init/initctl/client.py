# SPDX-License-Identifier: Apache-2.0
"""The caller's end of the control socket: one connection a request, framed."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from typing import Any

from enclavekit_core.address import UnixAddress
from enclavekit_core.errors import EnclavekitError, RemoteProtocolError, TransportError
from enclavekit_core.streams import connect

from enclavekit_enclave_init.initctl.framing import AnswerDecoder, encode_frame
from enclavekit_enclave_init.initctl.requests import Request, encode_request, make_request

READ_BYTES = 65536
Opener = Callable[[], socket.socket]


class Refused(EnclavekitError):
    """PID 1 said no; its words (exit 1)."""


class Client:
    """Makes requests; each on a connection of its own that `open_connection` makes."""

    def __init__(self, open_connection: Opener, peer: str) -> None:
        self._open, self._peer = open_connection, peer

    @classmethod
    def local(cls, path: str, timeout_s: float) -> Client:
        return cls(lambda: connect(UnixAddress(path), timeout_s), path)

    def request(self, verb: str, **values: object) -> Any:
        """Return what stands in the answer, {} if nothing does. Raises Refused, InputError, TransportError."""
        for _kind, value in self.stream(verb, **values):
            return value
        raise TransportError("read the answer of", self._peer, "it ended without one")

    def stream(self, verb: str, **values: object) -> Iterator[tuple[str, Any]]:
        """Yield (kind, value) of each answer until the last. Raises as `request`."""
        request = make_request(verb, values)
        with self._open() as sock:
            decoder = AnswerDecoder()
            try:
                sock.sendall(encode_frame(encode_request(Request(verb, request.values))))
                while data := sock.recv(READ_BYTES):
                    for answer in decoder.feed(data):
                        kind, value = parse_answer(answer)
                        if kind == "Error":
                            raise Refused(str(value.get("message", "it did not say why")))
                        yield kind, value
            except OSError as exc:
                raise TransportError("talk to", self._peer, exc) from exc
            decoder.feed_eof()


def parse_answer(data: bytes) -> tuple[str, dict[str, Any]]:
    """Return an answer's kind and value. Raises RemoteProtocolError."""
    try:
        answer = json.loads(data)
    except (ValueError, RecursionError) as exc:
        raise RemoteProtocolError("cannot read answer: it is not JSON") from exc
    if isinstance(answer, str):
        return answer, {}
    if isinstance(answer, dict) and len(answer) == 1:
        kind, value = next(iter(answer.items()))
        if isinstance(value, dict):
            return kind, value
    raise RemoteProtocolError("cannot read answer: it is neither a word nor an object with one key")
