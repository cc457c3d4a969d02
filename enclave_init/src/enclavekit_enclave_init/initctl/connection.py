# SPDX-License-Identifier: Apache-2.0
"""One connection to the control socket: reads its request, writes its answers, waits for nobody.

A request has to come within a time, an answer has to be taken within one; who follows logs may take as long as it
likes and loses lines instead.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping

from enclavekit_core.errors import RemoteProtocolError

from enclavekit_enclave_init.initctl.access import Caller
from enclavekit_enclave_init.initctl.framing import Framing, RequestDecoder, encode_frame
from enclavekit_enclave_init.initctl.requests import encode_answer
from enclavekit_enclave_init.logs.line_queue import LineQueue
from enclavekit_enclave_init.runtime.reactor import READ, WRITE, Reactor, TimerHandle

REQUEST_TIMEOUT_S = 10.0
ANSWER_TIMEOUT_S = 30.0  # without a byte taken
READ_BYTES = 65536
MAX_UNSENT_BYTES = 64 * 1024 * 1024  # of answers; what is live is bounded by its queue


class Connection:
    """Owns its socket. `on_request(connection, request)` and `on_close(connection)` are called once each."""

    def __init__(
        self,
        sock: socket.socket,
        caller: Caller,
        reactor: Reactor,
        on_request: Callable[[Connection, bytes], None],
        on_close: Callable[[Connection], None],
    ) -> None:
        sock.setblocking(False)
        self.caller = caller
        self.on_abandon: Callable[[], None] = lambda: None
        """Called when the peer leaves before the last answer."""
        self._sock, self._reactor = sock, reactor
        self._on_request, self._on_close = on_request, on_close
        self._decoder = RequestDecoder()
        self._unsent = bytearray()
        self._live: LineQueue | None = None
        self._finished = self._closed = False
        self._timer: TimerHandle | None = reactor.call_later(REQUEST_TIMEOUT_S, self.close)
        self._watch()

    @property
    def framing(self) -> Framing:
        """Known when there is a request."""
        return self._decoder.framing or Framing.BARE

    def answer(self, kind: str, value: Mapping[str, object] | None = None) -> None:
        """Send an answer; more may follow, if the framing has room for more than one."""
        data = encode_answer(kind, value)
        self.send(encode_frame(data) if self.framing is Framing.FRAMED else data)

    def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        if self._closed:
            return
        self._unsent += data
        if len(self._unsent) > MAX_UNSENT_BYTES:
            self.close()
            return
        self._flush()

    def finish(self) -> None:
        """Close once all has been taken."""
        self._finished = True
        if not self._closed:
            self._flush()

    def follow(self, queue: LineQueue) -> Callable[[], None]:
        """Send what `queue` holds, now and later; returns what tells us that there is more."""
        self._live = queue
        return self._flush

    def close(self) -> None:
        """Close at once. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._cancel_timer()
        self._reactor.unwatch(self._sock.fileno())
        self._sock.close()
        if not self._finished:
            self.on_abandon()
        self._on_close(self)

    def _on_ready(self) -> None:
        self._read()
        if not self._closed:
            self._flush()

    def _read(self) -> None:
        try:
            data = self._sock.recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        if not data:
            self.close()  # nobody is left to read an answer: initctl keeps its end open until it has it
            return
        try:
            request = self._decoder.feed(data)
        except RemoteProtocolError as exc:
            self.answer("Error", {"message": str(exc)})
            self.finish()
            return
        if request is not None:
            self._cancel_timer()
            self._on_request(self, request)

    def _flush(self) -> None:
        if self._closed:
            return
        try:
            while self._unsent or self._live:
                if not self._unsent and self._live is not None:
                    self._unsent += self._live.take()
                sent = self._sock.send(self._unsent)
                del self._unsent[:sent]
                self._cancel_timer()
        except BlockingIOError:
            if self._timer is None and self._live is None:
                self._timer = self._reactor.call_later(ANSWER_TIMEOUT_S, self.close)
        except OSError:
            self.close()
            return
        if self._finished and not self._unsent:
            self.close()
            return
        self._watch()

    def _watch(self) -> None:
        events = READ | WRITE if self._unsent else READ
        self._reactor.watch(self._sock.fileno(), events, self._on_ready)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
