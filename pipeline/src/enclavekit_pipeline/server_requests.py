# SPDX-License-Identifier: Apache-2.0
"""What the enclave does for a caller that it let in: one coroutine per kind of request."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import stat
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from enclavekit_core.errors import InputError, RemoteProtocolError, describe_cause

from enclavekit_pipeline.child import Child, exit_of, spawn
from enclavekit_pipeline.clients import Grant, check_path
from enclavekit_pipeline.frames import MAX_PAYLOAD_BYTES, Kind
from enclavekit_pipeline.mux import Stream
from enclavekit_pipeline.partial_file import PartialFile
from enclavekit_pipeline.requests import (
    CopyInRequest,
    CopyOutRequest,
    Done,
    ExecRequest,
    Opened,
    Request,
    decode_payload,
    encode_payload,
)
from enclavekit_pipeline.root import Root

READ_BYTES = 4 * MAX_PAYLOAD_BYTES
KILL_GRACE_S = 5.0  # between TERM and KILL when a time-out ends a command
DRAIN_GRACE_S = 0.5  # for output still in the pipes when a grandchild keeps them open
FORWARDED_SIGNALS = frozenset({1, 2, 3, 10, 12, 15})  # HUP INT QUIT USR1 USR2 TERM
Result = TypeVar("Result")


@dataclass(frozen=True)
class Workplace:
    """What requests act on."""

    app_root: Root
    system_root: Root
    threads: Executor

    def root_of(self, request: Request) -> Root:
        return self.system_root if request.system else self.app_root

    async def in_thread(self, function: Callable[..., Result], *args: object) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self.threads, function, *args)


async def serve_request(request: Request, grant: Grant, stream: Stream, place: Workplace) -> str:
    """Carry out a request and return its outcome for the log. Raises EnclavekitError, Refused or OSError."""
    match request:
        case ExecRequest():
            return await serve_exec(request, stream, place)
        case CopyInRequest():
            return await serve_copy_in(request, grant, stream, place)
        case CopyOutRequest():
            return await serve_copy_out(request, grant, stream, place)


async def serve_exec(request: ExecRequest, stream: Stream, place: Workplace) -> str:
    child = spawn(request, place.root_of(request))
    timed_out = False
    tasks: list[asyncio.Task[None]] = []
    try:
        await stream.send(Kind.OPENED, encode_payload(Opened()))
        outputs = [
            asyncio.create_task(send_output(stream, Kind.STDOUT, child.stdout)),
            asyncio.create_task(send_output(stream, Kind.STDERR, child.stderr)),
        ]
        incoming = asyncio.create_task(take_input(stream, child))
        ended = asyncio.ensure_future(place.in_thread(child.process.wait))
        tasks = [*outputs, incoming]
        waiting: list[asyncio.Future[int] | asyncio.Task[None]] = [ended, incoming]
        await asyncio.wait(waiting, timeout=request.timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if incoming.done() and not ended.done():
            incoming.result()  # raises: the caller has gone
        if not ended.done():
            timed_out = True
            child.kill(15)
            await asyncio.wait({ended}, timeout=KILL_GRACE_S)
        if not ended.done():
            child.kill()
        returncode = await ended
        # whoever else holds the pipes may write on for ever: what is in them now still belongs to the answer
        await asyncio.wait(outputs, timeout=DRAIN_GRACE_S)
        for task in outputs:
            if task.done():
                task.result()
        result = exit_of(returncode, timed_out=timed_out)
        await stream.send(Kind.EXIT, encode_payload(result))
        return f"exit {result.status}"
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        child.kill()
        if child.process.returncode is None:
            await place.in_thread(child.process.wait)


async def send_output(stream: Stream, kind: Kind, descriptor: int) -> None:
    """Send all that comes out of a pipe, then its end."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=READ_BYTES)
    # the transport owns the descriptor from here on
    transport, _ = await loop.connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(descriptor, "rb", buffering=0)
    )
    try:
        while data := await reader.read(READ_BYTES):
            await stream.send_data(kind, data)
        await stream.send_end(kind)
    finally:
        transport.close()


async def take_input(stream: Stream, child: Child) -> None:
    """Pass the caller's input and signals on until it goes away; only then does this end, with the reason."""
    loop = asyncio.get_running_loop()
    writer: asyncio.StreamWriter | None = None
    if child.stdin is not None:
        transport, protocol = await loop.connect_write_pipe(
            lambda: asyncio.streams.FlowControlMixin(loop=loop), os.fdopen(child.stdin, "wb", buffering=0)
        )
        writer = asyncio.StreamWriter(transport, protocol, None, loop)
    try:
        while True:
            frame = await stream.receive()
            if frame.kind is Kind.SIGNAL and frame.payload and frame.payload[0] in FORWARDED_SIGNALS:
                child.kill(frame.payload[0])
            elif frame.kind is Kind.STDIN:
                if writer is not None and frame.payload:
                    # a command that reads no more is its own affair, as in a pipe
                    with contextlib.suppress(OSError):
                        writer.write(frame.payload)
                        await writer.drain()
                await stream.consumed(frame)
                if frame.end and writer is not None:
                    writer.close()
            else:
                raise RemoteProtocolError(f"cannot read frame: {frame.kind.name} does not belong to exec")
    finally:
        if writer is not None:
            writer.close()


async def serve_copy_in(request: CopyInRequest, grant: Grant, stream: Stream, place: Workplace) -> str:
    root = place.root_of(request)
    file = await at_path(request.path, lambda: place.in_thread(open_target, root, request, grant))
    try:
        await stream.send(Kind.OPENED, encode_payload(Opened(name=file.name)))
        while True:
            frame = await stream.receive()
            if frame.kind is not Kind.STDIN:
                break
            await at_path(request.path, partial(place.in_thread, file.write, frame.payload))
            await stream.consumed(frame)
        if frame.kind is not Kind.DONE:
            raise RemoteProtocolError(f"cannot read frame: {frame.kind.name} does not belong to cp")
        expected = decode_payload(Done, frame.payload)
        await at_path(request.path, lambda: place.in_thread(file.finish, expected, request.mode, request.mtime_ns))
        await stream.send(Kind.DONE, encode_payload(file.done))
        return f"{file.size} bytes"
    finally:
        await place.in_thread(file.close)


def open_target(root: Root, request: CopyInRequest, grant: Grant) -> PartialFile:
    """Return the file to fill. Raises OSError, or Refused once it is known where the path leads."""
    try:
        directory, name = root.open(request.path, os.O_RDONLY | os.O_DIRECTORY), request.name
    except (FileNotFoundError, NotADirectoryError):
        parent, _, name = request.path.rpartition("/")
        if not name or name in (".", ".."):
            raise
        directory = root.open(parent or "/", os.O_RDONLY | os.O_DIRECTORY)
    try:
        check_path(grant, "cp-in", f"{root.name_of(directory).rstrip('/')}/{name}")
        return PartialFile(directory, name)
    except BaseException:
        os.close(directory)
        raise


async def serve_copy_out(request: CopyOutRequest, grant: Grant, stream: Stream, place: Workplace) -> str:
    root = place.root_of(request)
    descriptor = await at_path(request.path, lambda: place.in_thread(open_source, root, request.path, grant))
    try:
        info = os.fstat(descriptor)
        name = os.path.basename(root.name_of(descriptor))
        opened = Opened(name=name, size=info.st_size, mode=stat.S_IMODE(info.st_mode), mtime_ns=info.st_mtime_ns)
        await stream.send(Kind.OPENED, encode_payload(opened))
        digest, size = hashlib.sha256(), 0
        while data := await at_path(request.path, lambda: place.in_thread(os.read, descriptor, READ_BYTES)):
            digest.update(data)
            size += len(data)
            await stream.send_data(Kind.STDOUT, data)
        await stream.send_end(Kind.STDOUT)
        await stream.send(Kind.DONE, encode_payload(Done(sha256=digest.hexdigest(), size=size)))
        return f"{size} bytes"
    finally:
        os.close(descriptor)


def open_source(root: Root, path: str, grant: Grant) -> int:
    """Return a descriptor of a regular file. Raises OSError, or Refused once it is known where the path leads."""
    # O_NONBLOCK: opening a FIFO must not hang us; it is refused below
    descriptor = root.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        check_path(grant, "cp-out", root.name_of(descriptor))
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(21, os.strerror(21), path)
        if not stat.S_ISREG(mode):
            raise OSError(22, "not a regular file", path)
        return descriptor
    except BaseException:
        os.close(descriptor)
        raise


async def at_path(path: str, step: Callable[[], Awaitable[Result]]) -> Result:
    """Run a step on a file; an OSError of it becomes "cannot copy PATH: cause"."""
    try:
        return await step()
    except OSError as exc:
        cause = describe_cause(exc) if exc.strerror == os.strerror(exc.errno or 0) else str(exc.strerror)
        raise InputError("copy", path, cause) from exc
