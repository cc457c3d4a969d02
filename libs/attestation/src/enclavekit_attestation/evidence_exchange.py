# SPDX-License-Identifier: Apache-2.0
"""The exchange by which a server proves itself on a fresh TLS connection, before the application may use it. Pure.

    client -> server    GET /attestation?nonce=<ours>, Accept: application/cbor        HTTP/1.1, keep-alive
    server -> client    200, Content-Length, the document

Bytes in, a document out: `feed` until it returns it. Whatever the server sends besides is an error, so that nothing of
it is left for the application to read.
"""

from __future__ import annotations

import http.client
import io
import re

from enclavekit_core.errors import RemoteProtocolError

from enclavekit_attestation.cose import MAX_DOCUMENT_BYTES
from enclavekit_attestation.fetch import CBOR_TYPE, check_answer, with_nonce

MAX_HEAD_BYTES = 16 * 1024  # status and headers; ours has 200 bytes
END_OF_HEAD = b"\r\n\r\n"
HOST = re.compile(r"[A-Za-z0-9._:\[\]-]{1,253}")
FALLBACK_HOST = "enclave"


class _Received:
    """What http.client takes for a socket."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def makefile(self, mode: str) -> io.BytesIO:
        return io.BytesIO(self.data)


class EvidenceExchange:
    """One request and its answer."""

    def __init__(self, host: str | None, path: str, nonce: bytes) -> None:
        """`host` is for the Host header and for messages."""
        self.host = host if host and HOST.fullmatch(host) else FALLBACK_HOST
        self.nonce = nonce
        self.request = (
            f"GET {with_nonce(path, nonce)} HTTP/1.1\r\nHost: {self.host}\r\nAccept: {CBOR_TYPE}\r\n\r\n".encode(
                "ascii"
            )
        )
        self._received = b""

    def feed(self, data: bytes) -> bytes | None:
        """Take what the server sent, b"" for its end; return the document when it is complete.

        Raises: RemoteProtocolError.
        """
        if not data:
            raise self._refuse("it ended the connection")
        self._received += data
        end = self._received.find(END_OF_HEAD)
        if (len(self._received) if end < 0 else end) > MAX_HEAD_BYTES:
            raise self._refuse(f"more than {MAX_HEAD_BYTES} bytes of headers")
        if end < 0:
            return None
        body = self._received[end + len(END_OF_HEAD) :]
        length = self._length_of(self._received[: end + len(END_OF_HEAD)])
        if len(body) > length:
            raise self._refuse("it sent more than was asked for")
        return body if len(body) == length else None

    def _length_of(self, head: bytes) -> int:
        answer = http.client.HTTPResponse(_Received(head), method="GET")  # type: ignore[arg-type]
        try:
            answer.begin()
        except (http.client.HTTPException, OSError, ValueError) as exc:
            raise self._refuse("the answer is not HTTP") from exc
        check_answer(f"https://{self.host}", answer.status, answer.headers.get_content_type(), b"")
        length = answer.length
        if answer.chunked or length is None:
            raise self._refuse("the answer does not state its length")
        if length > MAX_DOCUMENT_BYTES:
            raise self._refuse(f"more than {MAX_DOCUMENT_BYTES} bytes")
        if answer.will_close:
            raise self._refuse("it does not keep the connection")
        return length

    def _refuse(self, reason: str) -> RemoteProtocolError:
        return RemoteProtocolError(f"cannot get evidence from https://{self.host}: {reason}")
