# SPDX-License-Identifier: Apache-2.0
"""`pipeline exec` on the caller's side: our standard streams are the command's, our signals too."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator

from enclavekit_core.errors import InputError, describe_cause

from enclavekit_pipeline.channel.mux import Stream
from enclavekit_pipeline.host.client import Target, receive
from enclavekit_pipeline.host.session import open_request
from enclavekit_pipeline.wire.exec_messages import ExecRequest, Exit
from enclavekit_pipeline.wire.frames import MAX_PAYLOAD_BYTES, Kind
from enclavekit_pipeline.wire.messages import decode_payload

FORWARDED_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
STDIN, STDOUT, STDERR = 0, 1, 2
TIMED_OUT = 124  # as timeout(1)
TARGETS = {Kind.STDOUT: STDOUT, Kind.STDERR: STDERR}


async def run_exec(target: Target, request: ExecRequest) -> int:
    """Run the command and return its exit status. Raises InputError and what `open_request` raises."""
    async with open_request(target, request) as stream:
        background: set[asyncio.Task[None]] = set()
        # before the answer: the command may already run when it is on its way, and our signals are the command's
        with forwarded_signals(stream, background):
            await receive(stream, Kind.OPENED)
            if request.stdin:
                background.add(asyncio.create_task(send_stdin(stream)))
            try:
                return await take_output(stream)
            finally:
                for task in background:
                    task.cancel()
                await asyncio.gather(*background, return_exceptions=True)


async def take_output(stream: Stream) -> int:
    while True:
        frame = await receive(stream, Kind.EXIT, Kind.STDOUT, Kind.STDERR)
        if frame.kind is Kind.EXIT:
            return status_of(decode_payload(Exit, frame.payload))
        if frame.payload:
            await asyncio.to_thread(write_all, TARGETS[frame.kind], frame.payload)
            await stream.consumed(frame)


def status_of(ended: Exit) -> int:
    if not ended.timed_out:
        return ended.status
    print("pipeline: the command was stopped: it took longer than --timeout", file=sys.stderr)
    # one that catches TERM and ends well has not done its work all the same
    return ended.status or TIMED_OUT


def write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    try:
        while view:
            view = view[os.write(descriptor, view) :]
    except BrokenPipeError:
        raise  # whoever read our output has left; no error of ours
    except OSError as exc:
        raise InputError("write", "the command's output", describe_cause(exc)) from exc


async def send_stdin(stream: Stream) -> None:
    """Send our standard input to its end.

    It is read in a daemon thread: a terminal or a pipe may block for ever, and nothing can interrupt that read.
    """
    loop = asyncio.get_running_loop()
    chunks: asyncio.Queue[bytes] = asyncio.Queue()
    wanted = threading.Semaphore(2)  # read one chunk ahead, no more

    def read() -> None:
        while True:
            wanted.acquire()
            try:
                data = os.read(STDIN, MAX_PAYLOAD_BYTES)
            except OSError:
                data = b""
            with contextlib.suppress(RuntimeError):  # the loop has closed: the command is over
                loop.call_soon_threadsafe(chunks.put_nowait, data)
            if not data:
                return

    threading.Thread(target=read, name="stdin", daemon=True).start()
    while data := await chunks.get():
        await stream.send_data(Kind.STDIN, data)
        wanted.release()
    await stream.send_end(Kind.STDIN)


@contextlib.contextmanager
def forwarded_signals(stream: Stream, background: set[asyncio.Task[None]]) -> Iterator[None]:
    """Send our signals to the command; from the third of a kind on they end us, in case the enclave does not answer."""
    loop = asyncio.get_running_loop()
    seen: set[int] = set()

    def forward(number: int) -> None:
        background.add(loop.create_task(stream.send(Kind.SIGNAL, bytes([number]))))
        if number in seen or number == signal.SIGHUP:
            loop.remove_signal_handler(number)
        seen.add(number)

    for number in FORWARDED_SIGNALS:
        loop.add_signal_handler(number, forward, number)
    try:
        yield
    finally:
        for number in FORWARDED_SIGNALS:
            loop.remove_signal_handler(number)
