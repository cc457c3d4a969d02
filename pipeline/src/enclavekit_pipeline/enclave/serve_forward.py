# SPDX-License-Identifier: Apache-2.0
"""Forwards in the enclave: connections that a caller wants made here, and sockets that listen here for a caller."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat

from enclavekit_core import logs
from enclavekit_core.address import TcpAddress, UnixAddress
from enclavekit_core.errors import EnclavekitError, InputError, RemoteProtocolError, TransportError
from enclavekit_core.streams import Listener

from enclavekit_pipeline.channel.mux import Stream
from enclavekit_pipeline.channel.relay import dial, explain, relay, reset
from enclavekit_pipeline.enclave.clients import Grant, Refused, check_forward
from enclavekit_pipeline.enclave.root import Root
from enclavekit_pipeline.enclave.workplace import Workplace
from enclavekit_pipeline.wire.forward_messages import Arrival, DialRequest, Listening, ListenRequest
from enclavekit_pipeline.wire.frames import Kind
from enclavekit_pipeline.wire.messages import Opened, encode_payload

ANSWER_TIMEOUT_S = 30.0  # for the client to connect on its side
MAX_ARRIVALS = 64  # of one listener, under way at once; more wait in its backlog
ACCEPT_PAUSE_S = 0.1  # out of descriptors: do not spin until there are some again
SOCKET_MODE = 0o666  # as a TCP port: the app runs as anybody; the directory may keep others out


log = logs.get_logger("pipeline")


async def serve_dial(request: DialRequest, grant: Grant, stream: Stream, place: Workplace) -> str:
    """Connect and relay. Raises InputError if nobody is there, Refused."""
    with place.forward_slot():
        try:
            sock = await connect_in(place.root_of(request), request, grant)
        except OSError as exc:
            raise InputError("connect to", f"{request.target} in the enclave", explain(exc)) from exc
        try:
            await stream.send(Kind.OPENED, encode_payload(Opened()))
        except BaseException:
            sock.close()
            raise
        return str(await relay(stream, sock, sends=Kind.STDOUT, takes=Kind.STDIN))


async def connect_in(root: Root, request: DialRequest, grant: Grant) -> socket.socket:
    """Connect to what the target means in `root`. Raises OSError, or Refused once it is known where a path leads."""
    if isinstance(request.address, TcpAddress):
        return await dial(request.address)
    descriptor = root.open(request.address.path, os.O_PATH)
    try:
        check_forward(grant, request, UnixAddress(root.name_of(descriptor)))
        if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
            raise OSError(None, "it is not a socket")
        # the descriptor: nobody can put another socket, or a link, in the place of what was just looked at
        return await dial(UnixAddress(f"/proc/self/fd/{descriptor}"))
    finally:
        os.close(descriptor)


async def serve_listen(request: ListenRequest, grant: Grant, stream: Stream, place: Workplace) -> str:
    """Listen until the caller closes the stream. Raises InputError if that cannot be, Refused."""
    with place.forward_slot(), contextlib.ExitStack() as stack:
        try:
            listener = await place.in_thread(listen_in, place.root_of(request), request, grant, stack)
        except OSError as exc:
            raise InputError("listen on", f"{request.listen} in the enclave", explain(exc)) from exc
        except TransportError as exc:
            raise InputError("listen on", f"{request.listen} in the enclave", str(exc).rpartition(": ")[2]) from exc
        bound = listener.bound_address if isinstance(request.address, TcpAddress) else request.listen
        await stream.send(Kind.OPENED, encode_payload(Listening(address=str(bound))))
        what: dict[str, object] = {"client": grant.name, "listen": str(bound)}
        arrivals: set[asyncio.Task[None]] = set()
        accepting = asyncio.create_task(accept_all(listener, stream, place, arrivals, what))
        gone = asyncio.create_task(stream.closed_by_peer.wait())
        try:
            await asyncio.wait({accepting, gone}, return_when=asyncio.FIRST_COMPLETED)
            if accepting.done():
                accepting.result()
            return "listened"
        finally:
            for task in (accepting, gone, *arrivals):
                task.cancel()
            await asyncio.gather(accepting, gone, *arrivals, return_exceptions=True)


def listen_in(root: Root, request: ListenRequest, grant: Grant, stack: contextlib.ExitStack) -> Listener:
    """Return a listener that `stack` closes. Raises OSError, TransportError, or Refused once it is known where a path
    leads.
    """
    address = request.address
    if isinstance(address, UnixAddress):
        parent, _, name = address.path.rpartition("/")
        directory = root.open(parent or "/", os.O_PATH | os.O_DIRECTORY)
        stack.callback(os.close, directory)
        check_forward(grant, request, UnixAddress(f"{root.name_of(directory).rstrip('/')}/{name}"))
        address = UnixAddress(f"/proc/self/fd/{directory}/{name}")
    listener = stack.enter_context(Listener(address, mode=SOCKET_MODE))
    listener.socket.setblocking(False)
    return listener


async def accept_all(
    listener: Listener,
    stream: Stream,
    place: Workplace,
    arrivals: set[asyncio.Task[None]],
    what: dict[str, object],
) -> None:
    """Pass on each connection, at most MAX_ARRIVALS at once, in tasks that are found in `arrivals`.

    Args:
        what: fields of each line in the log.
    """
    loop = asyncio.get_running_loop()
    room = asyncio.Semaphore(MAX_ARRIVALS)

    def forget(task: asyncio.Task[None]) -> None:
        arrivals.discard(task)
        room.release()

    while True:
        await room.acquire()
        while True:
            try:
                sock, _ = await loop.sock_accept(listener.socket)
                break
            except OSError:
                await asyncio.sleep(ACCEPT_PAUSE_S)
        task = asyncio.create_task(serve_arrival(sock, stream, place, what))
        arrivals.add(task)
        task.add_done_callback(forget)


async def serve_arrival(sock: socket.socket, listening: Stream, place: Workplace, what: dict[str, object]) -> None:
    """Open a stream to the caller for one connection, and relay once the caller has a connection of its own.

    Whatever goes wrong ends this one connection: to who has connected, the caller's refusal is a reset.
    """
    try:
        with place.forward_slot():
            stream = await listening.connection.open_stream()
            try:
                await stream.send(Kind.OPEN, encode_payload(Arrival(listener=listening.number)))
                async with asyncio.timeout(ANSWER_TIMEOUT_S):
                    answer = await stream.receive()
                if answer.kind is not Kind.OPENED:
                    raise RemoteProtocolError(f"cannot read frame: {answer.kind.name} where OPENED is due")
                log.info("connection handed to the client", stream=stream.number, **what)
                outcome = await relay(stream, sock, sends=Kind.STDOUT, takes=Kind.STDIN)
                log.info("connection done", stream=stream.number, outcome=str(outcome), **what)
            finally:
                stream.close()
    except (EnclavekitError, TimeoutError, Refused) as exc:
        log.info("connection reset", reason=str(exc) or "the client does not answer", **what)
    finally:
        reset(sock)  # unless it was relayed, which closes it
