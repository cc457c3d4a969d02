# SPDX-License-Identifier: Apache-2.0
"""The caller's side of one connection: attested once, then any number of requests at a time.

    async with connected(target) as session:
        async with session.open(ExecRequest(argv=["true"])) as stream:
            ...

A stream is closed when its block is left, however; the enclave then stops what it does for it. The connection stays.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

from enclavekit_core.errors import EnclavekitError, TransportError

from enclavekit_pipeline.channel.mux import Connection, Stream
from enclavekit_pipeline.host.client import (
    HANDSHAKE_TIMEOUT_S,
    Entered,
    Target,
    TurnedAway,
    connect,
    decision_log,
    receive,
    shake_hands,
)
from enclavekit_pipeline.wire.frames import Frame, Kind
from enclavekit_pipeline.wire.messages import CODE_DENIED, Failure, Message, decode_payload, encode_payload

MAX_TURNS, FIRST_TURN_S = 5, 0.2  # 6 s in all
Acceptor = Callable[[Stream, Frame], Awaitable[None]]
Answer = TypeVar("Answer")


class Session:
    """A connection on which both sides know each other. Made by `enter`, ended by `close`."""

    def __init__(self, connection: Connection, entered: Entered, target: Target) -> None:
        self.name = entered.name
        """What the enclave's list calls us."""
        self.verified = entered.verified
        """What the enclave has proved."""
        self.target = target
        self._connection = connection
        self._accept: Acceptor | None = None
        self._accepted: set[asyncio.Task[None]] = set()
        self._tasks = [asyncio.create_task(connection.run()), asyncio.create_task(self._take_opened())]

    @classmethod
    async def enter(cls, target: Target) -> Session:
        """Connect and shake hands, again if we are turned away at the door: a crowd of callers gets in one by one.

        Raises: TransportError, VerificationError (nothing was sent then), RemoteProtocolError.
        """
        for turn in range(MAX_TURNS):
            with contextlib.suppress(TurnedAway):
                return await cls._enter_once(target)
            # not all at the same time again
            await asyncio.sleep(FIRST_TURN_S * 2**turn * random.uniform(0.5, 1))  # noqa: S311 - no secret
        return await cls._enter_once(target)

    @classmethod
    async def _enter_once(cls, target: Target) -> Session:
        wire = await connect(target)
        connection = Connection(wire, target.address)
        try:
            async with asyncio.timeout(HANDSHAKE_TIMEOUT_S):
                entered = await shake_hands(connection, wire.peer_certificate(), target)
        except TimeoutError as exc:
            await connection.close()
            raise TransportError("shake hands with", target.address, "timed out") from exc
        except BaseException:
            await connection.close()
            raise
        return cls(connection, entered, target)

    @property
    def is_alive(self) -> bool:
        return not self._connection.has_ended

    @contextlib.asynccontextmanager
    async def open(self, request: Message) -> AsyncIterator[Stream]:
        """Yield the stream of a new request; waits while as many as one connection may have are open.

        Raises: TransportError, RemoteProtocolError, InputError if the request cannot be put in words.
        """
        payload = encode_payload(request)
        stream = await self._connection.open_stream()
        try:
            await stream.send(Kind.OPEN, payload)
            yield stream
        finally:
            stream.close()

    async def ask(self, request: Message, kind: Kind, answer: type[Answer]) -> Answer:
        """Send a request that has one frame for an answer, and return that."""
        async with self.open(request) as stream:
            return decode_payload(answer, (await receive(stream, kind)).payload)

    async def ping(self) -> float:
        """Return the seconds to the enclave and back."""
        return await self._connection.ping()

    @property
    def accept(self) -> Acceptor | None:
        """What takes the streams that the enclave opens: `await accept(stream, its OPEN frame)`, each in its own task;
        the stream is closed when that ends. Until it is set, a stream from the enclave ends the connection: set it
        before the request that allows them. Set back to None, it makes later ones be refused.
        """
        return self._accept

    @accept.setter
    def accept(self, acceptor: Acceptor | None) -> None:
        self._accept = acceptor
        self._connection.accepting = self._connection.accepting or acceptor is not None

    async def _take_opened(self) -> None:
        while (opened := await self._connection.opened.get()) is not None:
            task = asyncio.create_task(self._serve(*opened))
            self._accepted.add(task)
            task.add_done_callback(self._accepted.discard)

    async def _serve(self, stream: Stream, frame: Frame) -> None:
        try:
            if self._accept is None:
                words = Failure(code=CODE_DENIED, message="cannot open a stream: nobody waits for it any more")
                await stream.send(Kind.ERROR, encode_payload(words))
            else:
                await self._accept(stream, frame)
        except EnclavekitError as exc:
            decision_log(self.target)("stream of the enclave ended", reason=str(exc))
        finally:
            stream.close()

    async def ended(self) -> Exception:
        """Wait for the end of the connection and return its reason."""
        await asyncio.wait(self._tasks[:1])
        return self._connection.failure()

    async def close(self) -> None:
        """End what is under way, and the connection."""
        self._connection.finish()
        tasks = [*self._tasks, *self._accepted]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._connection.close()


@contextlib.asynccontextmanager
async def connected(target: Target) -> AsyncIterator[Session]:
    """Yield a session, closed at the end. Raises what `Session.enter` raises."""
    session = await Session.enter(target)
    try:
        yield session
    finally:
        await session.close()


@contextlib.asynccontextmanager
async def open_request(where: Target | Session, request: Message) -> AsyncIterator[Stream]:
    """Yield the stream of `request`: on that session, or on a connection of its own.

    Raises what `connected` and `Session.open` raise.
    """
    way = contextlib.nullcontext(where) if isinstance(where, Session) else connected(where)
    async with way as session, session.open(request) as stream:
        yield stream
