# SPDX-License-Identifier: Apache-2.0
"""Copies in the enclave, one file each: where a path leads, whether the caller may go there, and the bytes."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeVar

from enclavekit_core.errors import InputError, RemoteProtocolError, describe_cause

from enclavekit_pipeline.channel.mux import Stream
from enclavekit_pipeline.channel.partial_file import PartialFile
from enclavekit_pipeline.enclave.clients import Grant, check_path
from enclavekit_pipeline.enclave.root import Root
from enclavekit_pipeline.enclave.workplace import Workplace
from enclavekit_pipeline.wire.copy_messages import CopyInRequest, CopyOutRequest, Done
from enclavekit_pipeline.wire.frames import MAX_PAYLOAD_BYTES, Kind
from enclavekit_pipeline.wire.messages import Opened, decode_payload, encode_payload

READ_BYTES = 4 * MAX_PAYLOAD_BYTES
KEPT_MODE = 0o1777  # no set-id bits: whoever may write a file may not thereby become somebody else
Result = TypeVar("Result")


async def serve_copy_in(request: CopyInRequest, grant: Grant, stream: Stream, place: Workplace) -> str:
    root = place.root_of(request)
    file = await at_path(request.path, lambda: place.in_thread(open_target, root, request, grant))
    try:
        await stream.send(Kind.OPENED, encode_payload(Opened()))
        while True:
            frame = await stream.receive()
            if frame.kind is not Kind.STDIN:
                break
            if not frame.end:
                await at_path(request.path, partial(place.in_thread, file.write, frame.payload))
            await stream.consumed(frame)
        if frame.kind is not Kind.DONE:
            raise RemoteProtocolError(f"cannot read frame: {frame.kind.name} does not belong to cp")
        expected = decode_payload(Done, frame.payload)
        await at_path(
            request.path, lambda: place.in_thread(file.finish, expected, request.mode & KEPT_MODE, request.mtime_ns)
        )
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
        opened = Opened(size=info.st_size, mode=stat.S_IMODE(info.st_mode), mtime_ns=info.st_mtime_ns)
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
