# SPDX-License-Identifier: Apache-2.0
"""`pipeline forward` on the caller's side: sockets here whose connections go on in the enclave, and the reverse.

All of them share one session. What the enclave opens is only ever connected to the target that we have named for the
listener that we have asked for: it cannot choose.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

from enclavekit_core.address import TcpAddress
from enclavekit_core.errors import EnclavekitError, InputError, RemoteProtocolError
from enclavekit_core.streams import Listener

from enclavekit_pipeline.channel.mux import Stream
from enclavekit_pipeline.channel.relay import dial, explain, relay, reset
from enclavekit_pipeline.host.client import receive
from enclavekit_pipeline.host.forward_rules import Forward
from enclavekit_pipeline.host.session import Session
from enclavekit_pipeline.wire.forward_messages import (
    Arrival,
    DialRequest,
    ForwardAddress,
    Listening,
    ListenRequest,
    decode_forward_address,
)
from enclavekit_pipeline.wire.frames import Frame, Kind
from enclavekit_pipeline.wire.messages import CODE_INPUT, Failure, Opened, decode_payload, encode_payload

MAX_CONNECTIONS = 96  # of all -L together, under way at once: below the streams of a session; more wait to be accepted
ACCEPT_PAUSE_S = 0.1  # out of descriptors: do not spin until there are some again

Complain = Callable[[str], None]


def complain(text: str) -> None:
    print(f"pipeline: {text}", file=sys.stderr, flush=True)


@dataclass
class Forwarding:
    """The forwards of one session."""

    session: Session
    complain: Complain = complain
    """Takes the failures of single connections, which end nothing else."""
    _targets: dict[int, ForwardAddress] = field(default_factory=dict)
    """Where connections go that arrive in the enclave, by the number of the stream that listens there."""
    _room: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(MAX_CONNECTIONS))

    @contextlib.asynccontextmanager
    async def open(self, forward: Forward, *, system: bool = False) -> AsyncIterator[ForwardAddress]:
        """Listen while the block runs; yield the address, with the port that 0 became.

        Args: system: whether paths in the enclave are of the framework's root, not the app's.

        Raises: TransportError or InputError if that cannot be, RequestRefused if the enclave's list says no.
        """
        listening = self._listen_there if forward.reverse else self._listen_here
        async with listening(forward, system) as address:
            yield address

    @contextlib.asynccontextmanager
    async def _listen_here(self, forward: Forward, system: bool) -> AsyncIterator[ForwardAddress]:
        connections: set[asyncio.Task[None]] = set()
        with await asyncio.to_thread(Listener, forward.listen) as listener:
            listener.socket.setblocking(False)
            request = DialRequest(target=str(forward.target), system=system)
            accepting = asyncio.create_task(self._accept_all(listener, request, connections))
            try:
                bound = listener.bound_address
                yield bound if isinstance(bound, TcpAddress) else forward.listen
            finally:
                for task in (accepting, *connections):
                    task.cancel()
                await asyncio.gather(accepting, *connections, return_exceptions=True)

    async def _accept_all(self, listener: Listener, request: DialRequest, connections: set[asyncio.Task[None]]) -> None:
        loop = asyncio.get_running_loop()

        def forget(task: asyncio.Task[None]) -> None:
            connections.discard(task)
            self._room.release()

        while True:
            await self._room.acquire()
            while True:
                try:
                    sock, _ = await loop.sock_accept(listener.socket)
                    break
                except OSError:
                    await asyncio.sleep(ACCEPT_PAUSE_S)
            task = asyncio.create_task(self._carry(sock, request))
            connections.add(task)
            task.add_done_callback(forget)

    async def _carry(self, sock: socket.socket, request: DialRequest) -> None:
        """Take a connection made here into the enclave."""
        try:
            async with self.session.open(request) as stream:
                decode_payload(Opened, (await receive(stream, Kind.OPENED)).payload)
                await relay(stream, sock, sends=Kind.STDIN, takes=Kind.STDOUT)
        except EnclavekitError as exc:
            self.complain(str(exc))
        finally:
            reset(sock)  # unless it was relayed, which closes it

    @contextlib.asynccontextmanager
    async def _listen_there(self, forward: Forward, system: bool) -> AsyncIterator[ForwardAddress]:
        self.session.accept = self._take_arrival  # the same for all of this session
        request = ListenRequest(listen=str(forward.listen), system=system)
        async with self.session.open(request) as stream:
            self._targets[stream.number] = forward.target
            try:
                opened = decode_payload(Listening, (await receive(stream, Kind.OPENED)).payload)
                yield decode_forward_address(opened.address)
            finally:
                del self._targets[stream.number]

    async def _take_arrival(self, stream: Stream, frame: Frame) -> None:
        """Connect to the target of a connection that has arrived in the enclave, and relay."""
        target = self._targets.get(decode_payload(Arrival, frame.payload).listener)
        if target is None:
            raise RemoteProtocolError("cannot take a connection from the enclave: nothing of ours listens there")
        try:
            sock = await dial(target)
        except OSError as exc:
            failure = InputError("connect to", str(target), explain(exc))
            self.complain(str(failure))
            # no reason: what listens here, and why not, is none of the enclave's business
            refusal = Failure(code=CODE_INPUT, message="cannot connect to the target of the forward")
            await stream.send(Kind.ERROR, encode_payload(refusal))
            return
        try:
            await stream.send(Kind.OPENED, encode_payload(Opened()))
        except BaseException:
            sock.close()
            raise
        await relay(stream, sock, sends=Kind.STDIN, takes=Kind.STDOUT)
