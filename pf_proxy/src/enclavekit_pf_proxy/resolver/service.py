# SPDX-License-Identifier: Apache-2.0
"""The resolver's sockets on the loop: datagrams and streams in, vetted answers out."""

from __future__ import annotations

import secrets
import select
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from enclavekit_core.address import TcpAddress
from enclavekit_core.errors import EnclavekitError, TransportError
from enclavekit_core.logs import get_logger
from enclavekit_core.streams import Listener

from enclavekit_pf_proxy.loop import Loop
from enclavekit_pf_proxy.plan import DnsPlan
from enclavekit_pf_proxy.policy.gate import Gate
from enclavekit_pf_proxy.resolver.cache import AnswerCache
from enclavekit_pf_proxy.resolver.upstream import MAX_MESSAGE_BYTES, Upstreams
from enclavekit_pf_proxy.resolver.vetting import (
    FAILED,
    Answer,
    Key,
    Question,
    encode_answer,
    encode_query,
    read_answer,
    read_question,
    udp_limit,
)

MAX_STREAMS = 64
STREAM_IDLE_S = 10.0
MAX_PER_ROUND = 64  # datagrams, then others get their turn
MAX_QUERY_BYTES = 4096  # of a datagram or a stream's message: a question is below 300

Reply = Callable[[bytes], None]


@dataclass(slots=True)
class DnsSockets:
    """Opened once, used by one worker after the other."""

    datagrams: socket.socket
    streams: Listener

    def close(self) -> None:
        self.datagrams.close()
        self.streams.close()


def open_sockets(listen: TcpAddress) -> DnsSockets:
    """Listen on both kinds of socket, at one port. Raises TransportError."""
    streams = Listener(listen)
    streams.socket.setblocking(False)
    datagrams = socket.socket(streams.socket.family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    try:
        datagrams.bind(streams.socket.getsockname())
    except OSError as exc:
        datagrams.close()
        streams.close()
        raise TransportError("listen on", f"udp://{listen.host}:{listen.port}", exc) from exc
    return DnsSockets(datagrams, streams)


class Resolver:
    """Answers questions from the cache or the upstreams; tells the gate which names led to which addresses."""

    def __init__(self, gate: Gate, upstreams: Upstreams) -> None:
        self._gate, self._upstreams = gate, upstreams
        self._cache = AnswerCache()
        self._asked: dict[Key, list[tuple[Question, Reply, int]]] = {}
        self._log = get_logger("pf-proxy")

    def receive(self, wire: bytes, reply: Reply, max_bytes: int | None = None) -> None:
        """Take a query; `reply` is called once, now or later. `max_bytes`: None for what the query says."""
        question = read_question(wire, self._gate)
        if question is None:
            return
        if isinstance(question, bytes):
            reply(question)
            return
        limit = udp_limit(question) if max_bytes is None else max_bytes
        cached = self._cache.find(question.key, time.monotonic())
        if cached is not None:
            self._answer([(question, reply, limit)], *cached)
            return
        waiting = self._asked.get(question.key)
        if waiting is not None:
            waiting.append((question, reply, limit))
            return
        number = secrets.randbits(16)
        key = question.key
        self._asked[key] = [(question, reply, limit)]
        if not self._upstreams.ask(encode_query(key, number), lambda data: self._answered(key, number, data)):
            self._answer(self._asked.pop(key), FAILED, 0.0)

    def _answered(self, key: Key, number: int, data: bytes | None) -> None:
        answer = read_answer(data, key, number, self._gate) if data is not None else None
        if answer is None:
            self._log.warning("dns failed", name=key[0], type=key[1])
            answer = FAILED
        else:
            self._cache.store(key, answer, time.monotonic())
        if answer.dropped:
            self._log.warning("dns answer not believed", name=key[0], dropped=list(answer.dropped))
        self._answer(self._asked.pop(key, []), answer, 0.0)

    def _answer(self, waiting: Sequence[tuple[Question, Reply, int]], answer: Answer, age_s: float) -> None:
        for question, reply, limit in waiting:
            for address in answer.addresses:
                self._gate.record(question.key[0], address, answer.ttl_s - age_s)
            reply(encode_answer(question, answer, age_s, limit))


class DnsService:
    """The sockets. `stop` closes them for this process."""

    def __init__(self, loop: Loop, sockets: DnsSockets, gate: Gate, plan: DnsPlan) -> None:
        upstreams = Upstreams(plan.upstreams, plan.timeout_s, loop.wake)
        loop.on_wake.append(upstreams.deliver)
        resolver = Resolver(gate, upstreams)
        self._tasks = (_Datagrams(loop, sockets.datagrams, resolver), _Streams(loop, sockets.streams, resolver))

    def stop(self) -> None:
        for task in self._tasks:
            task.stop()


class _Datagrams:
    def __init__(self, loop: Loop, sock: socket.socket, resolver: Resolver) -> None:
        self._loop, self._sock, self._resolver = loop, sock, resolver
        self._closed = False
        loop.watch(sock.fileno(), self, 0, select.EPOLLIN)

    def notice(self, index: int, mask: int) -> None:
        pass  # `run` follows

    def run(self, now: float) -> bool:
        for _ in range(MAX_PER_ROUND):
            if self._closed:
                break
            try:
                wire, sender = self._sock.recvfrom(MAX_QUERY_BYTES)
            except OSError:
                break  # nothing more; an ICMP error of an earlier reply is nobody's concern
            self._resolver.receive(wire, lambda data, sender=sender: self._send(data, sender))  # type: ignore[misc]
        return False

    def expire(self, now: float) -> float | None:
        return None

    def stop(self) -> None:
        if not self._closed:
            self._closed = True
            self._loop.forget(self._sock.fileno())
            self._loop.drop(self)
            self._sock.close()

    def _send(self, data: bytes, sender: tuple[object, ...]) -> None:
        if self._closed:
            return
        try:
            self._sock.sendto(data, sender)
        except OSError:
            pass  # whoever asked has gone, or has no room: it asks again


class _Streams:
    def __init__(self, loop: Loop, listener: Listener, resolver: Resolver) -> None:
        self._loop, self._listener, self._resolver = loop, listener, resolver
        self._open: set[_Stream] = set()
        self._closed = False
        loop.watch(listener.socket.fileno(), self, 0, select.EPOLLIN)

    def notice(self, index: int, mask: int) -> None:
        pass  # `run` follows

    def run(self, now: float) -> bool:
        if self._closed:
            return False
        try:
            sock, _ = self._listener.accept()
        except (OSError, EnclavekitError):
            return False
        if len(self._open) >= MAX_STREAMS:
            sock.close()  # it asks again
        else:
            self._open.add(_Stream(self._loop, sock, self._resolver, self._open.discard))
        return False

    def expire(self, now: float) -> float | None:
        return None

    def stop(self) -> None:
        if not self._closed:
            self._closed = True
            self._loop.forget(self._listener.socket.fileno())
            self._loop.drop(self)
            self._listener.close()
            for stream in list(self._open):
                stream.close()


class _Stream:
    """One TCP client: messages with their length in front, answered as the answers come."""

    def __init__(self, loop: Loop, sock: socket.socket, resolver: Resolver, closed: Callable[[_Stream], None]) -> None:
        self._loop, self._sock, self._resolver, self._when_closed = loop, sock, resolver, closed
        self._data = b""
        self._closed = False
        self._last = time.monotonic()
        sock.setblocking(False)
        loop.watch(sock.fileno(), self, 0, select.EPOLLIN)
        loop.timers.set(self, self._last + STREAM_IDLE_S)

    def notice(self, index: int, mask: int) -> None:
        pass  # `run` follows

    def run(self, now: float) -> bool:
        if self._closed:
            return False
        try:
            piece = self._sock.recv(MAX_QUERY_BYTES)
        except BlockingIOError:
            return False
        except OSError:
            piece = b""
        if not piece:
            self.close()
            return False
        self._last = now
        self._data += piece
        while len(self._data) >= 2 and not self._closed:
            length = int.from_bytes(self._data[:2], "big")
            if length > MAX_QUERY_BYTES:
                self.close()
            elif len(self._data) < 2 + length:
                break
            else:
                wire, self._data = self._data[2 : 2 + length], self._data[2 + length :]
                self._resolver.receive(wire, self._send, MAX_MESSAGE_BYTES)
        return False

    def expire(self, now: float) -> float | None:
        due = self._last + STREAM_IDLE_S
        if now < due:
            return due
        self.close()
        return None

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._loop.release(self._sock.fileno())
            self._loop.drop(self)
            self._sock.close()
            self._when_closed(self)

    def _send(self, data: bytes) -> None:
        if self._closed:
            return
        message = len(data).to_bytes(2, "big") + data
        try:
            sent = self._sock.send(message)
        except OSError:
            sent = 0
        if sent < len(message):
            self.close()  # it does not read its answers
