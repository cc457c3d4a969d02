# SPDX-License-Identifier: Apache-2.0
"""A command that runs in an enclave, for programs: its streams, its end, and all of them at once."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

from enclavekit_core.errors import InputError

from enclavekit_pipeline.channel.mux import Stream, StreamClosed
from enclavekit_pipeline.host.client import receive
from enclavekit_pipeline.wire.exec_messages import Exit
from enclavekit_pipeline.wire.frames import Frame, Kind
from enclavekit_pipeline.wire.messages import decode_payload

MAX_OUTPUT_BYTES = 64 * 1024 * 1024  # that `exec` collects; `start` has no limit


@dataclass(frozen=True, slots=True)
class Result:
    """How a command ended."""

    status: int
    """0..255; 128+n if signal n ended it."""
    stdout: bytes
    stderr: bytes
    timed_out: bool = False


class Output:
    """One of a running command's outputs: `async for data in process.stdout`, or `await process.stdout.read()`."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._frames: asyncio.Queue[Frame | None] = asyncio.Queue()  # bounded by the credit of the stream

    def put(self, frame: Frame | None) -> None:
        self._frames.put_nowait(frame)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while (frame := await self._frames.get()) is not None:
            if frame.end:
                break
            yield frame.payload
            await self._stream.consumed(frame)
        self._frames.put_nowait(None)

    async def read(self, most: int = MAX_OUTPUT_BYTES) -> bytes:
        """Return all of it. Raises InputError if it is more than `most` bytes."""
        data = bytearray()
        async for part in self:
            data += part
            if len(data) > most:
                raise InputError("take", "the command's output", f"it is more than {most} bytes")
        return bytes(data)


class Process:
    """A command under way in the enclave. Its outputs must be read, or it waits."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self.stdout, self.stderr = Output(stream), Output(stream)
        self._ended = asyncio.create_task(self._take_frames())

    async def write(self, data: bytes) -> None:
        """Send standard input (`stdin=True`), as fast as the command takes it."""
        await self._stream.send_data(Kind.STDIN, data)

    async def close_stdin(self) -> None:
        await self._stream.send_end(Kind.STDIN)

    async def send_signal(self, number: int) -> None:
        await self._stream.send(Kind.SIGNAL, bytes([number]))

    async def wait(self) -> Exit:
        """Return how it ended; what of its outputs was not read is lost. Raises RequestRefused, TransportError."""
        drains = [asyncio.ensure_future(self._drain(output)) for output in (self.stdout, self.stderr)]
        try:
            return await asyncio.shield(self._ended)
        finally:
            for drain in drains:
                drain.cancel()

    async def communicate(self, stdin: bytes | None = None, most: int = MAX_OUTPUT_BYTES) -> Result:
        """Send all of `stdin`, take all outputs, return them with the status."""
        async with asyncio.TaskGroup() as group:
            outputs = [group.create_task(output.read(most)) for output in (self.stdout, self.stderr)]
            feeding = group.create_task(self._feed(stdin)) if stdin is not None else None
            exit_ = await asyncio.shield(self._ended)
            if feeding is not None:
                feeding.cancel()
        stdout, stderr = (output.result() for output in outputs)
        return Result(exit_.status, stdout, stderr, exit_.timed_out)

    async def _feed(self, data: bytes) -> None:
        with contextlib.suppress(StreamClosed):  # it has ended, and needed no more
            await self.write(data)
            await self.close_stdin()

    @staticmethod
    async def _drain(output: Output) -> None:
        async for _ in output:
            pass

    async def _take_frames(self) -> Exit:
        outputs = {Kind.STDOUT: self.stdout, Kind.STDERR: self.stderr}
        try:
            while (frame := await receive(self._stream, Kind.EXIT, *outputs)).kind is not Kind.EXIT:
                outputs[frame.kind].put(frame)
            return decode_payload(Exit, frame.payload)
        finally:
            for output in outputs.values():
                output.put(None)

    async def stop(self) -> None:
        """Take no more frames; what still runs ends with the stream."""
        self._ended.cancel()
        await asyncio.gather(self._ended, return_exceptions=True)
