# SPDX-License-Identifier: Apache-2.0
"""An exec in the enclave: its streams both ways, its end, and the end of everything it leaves behind."""

from __future__ import annotations

import asyncio
import signal

from enclavekit_core.errors import RemoteProtocolError

from enclavekit_pipeline.channel.mux import Stream
from enclavekit_pipeline.enclave.child import Child, exit_of, spawn
from enclavekit_pipeline.enclave.clients import Grant
from enclavekit_pipeline.enclave.ending import wait_unreaped
from enclavekit_pipeline.enclave.pipes import OutputPipe
from enclavekit_pipeline.enclave.workplace import Workplace
from enclavekit_pipeline.wire.exec_messages import ExecRequest, ShellRequest, WindowSize
from enclavekit_pipeline.wire.frames import Frame, Kind
from enclavekit_pipeline.wire.messages import Opened, decode_payload, encode_payload

OUTPUT_KINDS = (Kind.STDOUT, Kind.STDERR)  # a terminal has the first only
KILL_GRACE_S = 5.0  # between TERM and KILL when a time-out ends a command
# those that a terminal or another process sends on purpose; none that stops, so that nothing hangs unseen
FORWARDED_SIGNALS = frozenset(
    {signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM}
)


async def serve_exec(request: ExecRequest | ShellRequest, grant: Grant, stream: Stream, place: Workplace) -> str:
    """Run the command, send its exit status, return the outcome for the log.

    Raises: InputError if it cannot be started, Refused if too many run, what `Stream` raises when the caller goes away.
    """
    with place.command_slot():
        child = spawn(request, grant, place.root_of(request), place.starter, place.groups)
        ended = asyncio.create_task(wait_unreaped(child.process.pid, place))
        tasks: list[asyncio.Task[None]] = []
        try:
            await stream.send(Kind.OPENED, encode_payload(Opened()))
            outputs = [
                asyncio.create_task(send_output(stream, kind, pipe))
                for kind, pipe in zip(OUTPUT_KINDS, child.outputs, strict=False)
            ]
            caller = asyncio.create_task(take_frames(stream, child))
            tasks = [*outputs, caller]
            timed_out = await wait_for_end(ended, caller, child, getattr(request, "timeout_s", None))
            child.kill()
            for pipe in child.outputs:
                pipe.finish()
            await send_rest(outputs, caller)
            result = exit_of(child.reap(), timed_out=timed_out)
            await stream.send(Kind.EXIT, encode_payload(result))
            return f"exit {result.status}" + (", timed out" if timed_out else "")
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            if child.process.returncode is None:
                child.kill()
                await place.in_thread(child.reap)
            ended.cancel()
            child.close()


async def wait_for_end(
    ended: asyncio.Future[None], caller: asyncio.Future[None], child: Child, timeout_s: float | None
) -> bool:
    """Wait for the command; return whether it had to be stopped. Raises what `caller` ends with, if that is first."""
    waiting: list[asyncio.Future[None]] = [ended, caller]
    await asyncio.wait(waiting, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    if ended.done():
        return False
    if not caller.done():
        child.kill(signal.SIGTERM)
        await asyncio.wait(waiting, timeout=KILL_GRACE_S, return_when=asyncio.FIRST_COMPLETED)
    if caller.done():
        caller.result()
    if not ended.done():
        child.kill()
        await ended
    return True


async def send_rest(outputs: list[asyncio.Task[None]], caller: asyncio.Task[None]) -> None:
    """Wait until the caller has taken all output, however slowly. Raises what `caller` ends with, if that is first."""
    pending = set(outputs)
    while pending:
        done, _ = await asyncio.wait({*pending, caller}, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
        pending -= done


async def send_output(stream: Stream, kind: Kind, pipe: OutputPipe) -> None:
    """Send all that comes out of a pipe, then its end."""
    while data := await pipe.read():
        await stream.send_data(kind, data)
    await stream.send_end(kind)


async def take_frames(stream: Stream, child: Child) -> None:
    """Pass the caller's input and signals on until it goes away; only then does this end, with the reason.

    Input has a task of its own: a command that does not read must not keep signals, or the caller's end, from it.
    """
    chunks: asyncio.Queue[Frame] = asyncio.Queue()  # bounded by the credit of the stream
    feeding = asyncio.create_task(feed_input(stream, child, chunks))
    try:
        while True:
            frame = await stream.receive()
            if frame.kind is Kind.STDIN:
                chunks.put_nowait(frame)
            elif frame.kind is Kind.SIGNAL and len(frame.payload) == 1 and frame.payload[0] in FORWARDED_SIGNALS:
                child.signal(frame.payload[0])
            elif frame.kind is Kind.RESIZE:
                child.resize(decode_payload(WindowSize, frame.payload))
            else:
                raise RemoteProtocolError(f"cannot read frame: {frame.kind.name} does not belong to exec")
    finally:
        feeding.cancel()
        await asyncio.gather(feeding, return_exceptions=True)


async def feed_input(stream: Stream, child: Child, chunks: asyncio.Queue[Frame]) -> None:
    while True:
        frame = await chunks.get()
        await child.write(frame.payload)
        await stream.consumed(frame)
        if frame.end:
            await child.end_input()
            return
