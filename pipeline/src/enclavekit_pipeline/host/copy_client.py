# SPDX-License-Identifier: Apache-2.0
"""`pipeline cp` on the caller's side: one file, either way, whole or not at all."""

from __future__ import annotations

import asyncio
import hashlib
import os
import stat
import time
from dataclasses import dataclass

from enclavekit_core.errors import InputError, RemoteProtocolError, describe_cause

from enclavekit_pipeline.channel.mux import Stream
from enclavekit_pipeline.channel.partial_file import PartialFile
from enclavekit_pipeline.host.client import Target, receive
from enclavekit_pipeline.host.session import Session, open_request
from enclavekit_pipeline.wire.copy_messages import CopyInRequest, CopyOutRequest, Done
from enclavekit_pipeline.wire.frames import MAX_PAYLOAD_BYTES, Kind
from enclavekit_pipeline.wire.messages import Opened, decode_payload, encode_payload

STANDARD_STREAM = "-"
STDIN_MODE = 0o644
STDIN, STDOUT = 0, 1
READ_BYTES = 4 * MAX_PAYLOAD_BYTES


@dataclass(frozen=True)
class Source:
    """An open file of ours and what the copy keeps of it."""

    descriptor: int
    name: str
    mode: int
    mtime_ns: int


def open_source(path: str, target_path: str) -> Source:
    """Raises InputError: nothing is sent for a source that cannot be read."""
    if path == STANDARD_STREAM:
        name = os.path.basename(target_path) or "stdin"
        return Source(os.dup(STDIN), name, STDIN_MODE, time.time_ns())
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        info = os.fstat(descriptor)
    except OSError as exc:
        raise InputError("copy", path, describe_cause(exc)) from exc
    if not stat.S_ISREG(info.st_mode):
        os.close(descriptor)
        raise InputError(
            "copy", path, "it is a directory" if stat.S_ISDIR(info.st_mode) else "it is not a regular file"
        )
    name = os.path.basename(os.path.abspath(path))
    return Source(descriptor, name, stat.S_IMODE(info.st_mode), info.st_mtime_ns)


async def copy_in(target: Target | Session, local: str, remote: str, *, system: bool) -> int:
    """Copy a file of ours into the enclave and return its size. Raises InputError and what `open_request` raises."""
    source = open_source(local, remote)
    try:
        request = CopyInRequest(
            path=remote, name=source.name, mode=source.mode & 0o7777, mtime_ns=max(source.mtime_ns, 0), system=system
        )
        async with open_request(target, request) as stream:
            await receive(stream, Kind.OPENED)
            sending = asyncio.create_task(send_file(stream, source.descriptor))
            answer = asyncio.create_task(receive(stream, Kind.DONE))
            try:
                # the enclave may refuse in the middle: then its words count, not ours
                await asyncio.wait({sending, answer}, return_when=asyncio.FIRST_COMPLETED)
                if not answer.done():
                    await sending
                confirmed = decode_payload(Done, (await answer).payload)
                if not sending.done() or confirmed != sending.result():
                    raise RemoteProtocolError(f"cannot copy {local}: the enclave confirms another content")
                return confirmed.size
            finally:
                sending.cancel()
                answer.cancel()
                await asyncio.gather(sending, answer, return_exceptions=True)
    finally:
        os.close(source.descriptor)


async def send_file(stream: Stream, descriptor: int) -> Done:
    digest, size = hashlib.sha256(), 0
    while data := await asyncio.to_thread(os.read, descriptor, READ_BYTES):
        digest.update(data)
        size += len(data)
        await stream.send_data(Kind.STDIN, data)
    done = Done(sha256=digest.hexdigest(), size=size)
    await stream.send(Kind.DONE, encode_payload(done))
    return done


async def copy_out(target: Target | Session, remote: str, local: str, *, system: bool) -> int:
    """Copy a file out of the enclave and return its size. Raises InputError and what `open_request` raises."""
    async with open_request(target, CopyOutRequest(path=remote, system=system)) as stream:
        opened = decode_payload(Opened, (await receive(stream, Kind.OPENED)).payload)
        if local == STANDARD_STREAM:
            return await receive_to_stdout(stream, remote)
        try:
            file = await asyncio.to_thread(open_destination, local, remote)
        except OSError as exc:
            raise InputError("copy", local, describe_cause(exc)) from exc
        try:
            while (frame := await receive(stream, Kind.STDOUT, Kind.DONE)).kind is Kind.STDOUT:
                await asyncio.to_thread(file.write, frame.payload)
                await stream.consumed(frame)
            expected = decode_payload(Done, frame.payload)
            # no set-id bits from an enclave: its files are data here
            await asyncio.to_thread(file.finish, expected, opened.mode & 0o777, opened.mtime_ns)
            return file.size
        except OSError as exc:
            raise InputError("copy", local, describe_cause(exc)) from exc
        finally:
            file.close()


def open_destination(path: str, remote: str) -> PartialFile:
    """Raises OSError, or InputError if `remote` has no name that a file here could get.

    In a directory the file gets the name that the user asked for: one chosen by the enclave might be `.bashrc`.
    """
    directory, name = (path, os.path.basename(remote)) if os.path.isdir(path) else os.path.split(path)
    if name in ("", ".", ".."):
        raise InputError("copy to", path, "the file would have no name there")
    descriptor = os.open(directory or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return PartialFile(descriptor, name)
    except BaseException:
        os.close(descriptor)
        raise


async def receive_to_stdout(stream: Stream, remote: str) -> int:
    """Write the content as it comes; what a wrong digest means for bytes already written is for the reader to judge
    by the exit code."""
    digest, size = hashlib.sha256(), 0
    with os.fdopen(os.dup(STDOUT), "wb") as out:
        while (frame := await receive(stream, Kind.STDOUT, Kind.DONE)).kind is Kind.STDOUT:
            digest.update(frame.payload)
            size += len(frame.payload)
            await asyncio.to_thread(out.write, frame.payload)
            await stream.consumed(frame)
    if decode_payload(Done, frame.payload) != Done(sha256=digest.hexdigest(), size=size):
        raise RemoteProtocolError(f"cannot copy {remote}: what arrived is not what was sent")
    return size
