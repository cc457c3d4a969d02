# SPDX-License-Identifier: Apache-2.0
"""`pipeline exec` and `shell` on the caller's side: our standard streams are the command's, our signals and our
terminal too.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any

from enclavekit_core.errors import InputError, TransportError, describe_cause

from enclavekit_pipeline.channel.mux import Stream
from enclavekit_pipeline.host.client import Target, receive
from enclavekit_pipeline.host.session import Session, open_request
from enclavekit_pipeline.host.terminal import STDERR, STDIN, STDOUT, DetachKeys, raw_terminal, window_size
from enclavekit_pipeline.wire.exec_messages import ExecRequest, Exit, ShellRequest
from enclavekit_pipeline.wire.frames import MAX_PAYLOAD_BYTES, Kind
from enclavekit_pipeline.wire.job_messages import JobInfo
from enclavekit_pipeline.wire.messages import decode_payload, encode_payload

FORWARDED_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
TIMED_OUT = 124  # as timeout(1)
TARGETS = {Kind.STDOUT: STDOUT, Kind.STDERR: STDERR}


async def run_exec(where: Target | Session, request: ExecRequest | ShellRequest) -> int:
    """Run the command and return its exit status. Raises InputError and what `open_request` raises."""
    stdin = isinstance(request, ShellRequest) or request.stdin
    async with open_request(where, request) as stream, companions() as background:
        # before the answer: the command may already run when it is on its way, and our signals are the command's
        with forwarded_signals(stream, background):
            await receive(stream, Kind.OPENED)
            with own_terminal(stream, background, wanted=request.terminal is not None, raw=stdin):
                if stdin:
                    start(background, send_stdin(stream))
                return await take_output(stream)


async def start_job(where: Target | Session, request: ExecRequest) -> JobInfo:
    """Start a detached command. Raises InputError and what `open_request` raises."""
    async with open_request(where, request) as stream:
        await receive(stream, Kind.OPENED)
        return decode_payload(JobInfo, (await receive(stream, Kind.JOB)).payload)


@contextlib.asynccontextmanager
async def companions() -> AsyncIterator[set[asyncio.Task[None]]]:
    """Yield a set for tasks that end with the block."""
    background: set[asyncio.Task[None]] = set()
    try:
        yield background
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


async def send_stdin(stream: Stream, detach: Callable[[], None] | None = None) -> None:
    """Send our standard input to its end, or until the detach keys are typed, if there is what to call then.

    It is read in a daemon thread: a terminal or a pipe may block for ever, and nothing can interrupt that read.
    """
    loop = asyncio.get_running_loop()
    chunks: asyncio.Queue[bytes] = asyncio.Queue()
    wanted = threading.Semaphore(2)  # read one chunk ahead, no more
    keys = DetachKeys()

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
        if detach is not None:
            data, leaving = keys.feed(data)
            await stream.send_data(Kind.STDIN, data)
            if leaving:
                detach()
                return
        else:
            await stream.send_data(Kind.STDIN, data)
        wanted.release()
    await stream.send_end(Kind.STDIN)


@contextlib.contextmanager
def forwarded_signals(stream: Stream, background: set[asyncio.Task[None]]) -> Iterator[None]:
    """Send our signals to the command; from the third of a kind on they end us, in case the enclave does not answer.

    They end us as an exception does, so that our terminal is put back.
    """
    loop = asyncio.get_running_loop()
    seen: set[int] = set()
    before: dict[int, Any] = {}

    def forward(number: int) -> None:
        start(background, stream.send(Kind.SIGNAL, bytes([number])))
        if number in seen or number == signal.SIGHUP:
            loop.remove_signal_handler(number)
            before[number] = signal.signal(number, lambda *_: sys.exit(128 + number))
        seen.add(number)

    for number in FORWARDED_SIGNALS:
        loop.add_signal_handler(number, forward, number)
    try:
        yield
    finally:
        for number in FORWARDED_SIGNALS:
            loop.remove_signal_handler(number)
        for known, handler in before.items():
            signal.signal(known, handler)


@contextlib.contextmanager
def own_terminal(stream: Stream, background: set[asyncio.Task[None]], *, wanted: bool, raw: bool) -> Iterator[None]:
    """While a terminal in the enclave is shown on ours: tell its size whenever ours changes, and with `raw` pass every
    key on as it is.
    """
    if not wanted:
        yield
        return
    loop = asyncio.get_running_loop()

    def resized() -> None:
        start(background, stream.send(Kind.RESIZE, encode_payload(window_size())))

    loop.add_signal_handler(signal.SIGWINCH, resized)
    try:
        with raw_terminal(resized) if raw else contextlib.nullcontext():
            yield
    finally:
        loop.remove_signal_handler(signal.SIGWINCH)


def start(background: set[asyncio.Task[None]], work: Coroutine[None, None, None]) -> None:
    """Run `work` beside; a connection that ends meanwhile is told by what waits for the command."""

    async def run() -> None:
        with contextlib.suppress(TransportError):
            await work

    background.add(asyncio.get_running_loop().create_task(run()))
