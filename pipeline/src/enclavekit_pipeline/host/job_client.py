# SPDX-License-Identifier: Apache-2.0
"""Jobs and processes in an enclave, from the caller's side. What the enclave says of them is shown, never trusted."""

from __future__ import annotations

import asyncio
import sys

from enclavekit_core.errors import RemoteProtocolError

from enclavekit_pipeline.channel.mux import Stream
from enclavekit_pipeline.host.client import Target, receive
from enclavekit_pipeline.host.exec_client import (
    FORWARDED_SIGNALS,
    TARGETS,
    companions,
    own_terminal,
    send_stdin,
    start,
    status_of,
    write_all,
)
from enclavekit_pipeline.host.session import Session, open_request
from enclavekit_pipeline.wire.frames import Kind
from enclavekit_pipeline.wire.job_messages import (
    AttachRequest,
    Gap,
    JobInfo,
    JobList,
    JobsRequest,
    KillRequest,
    LogsRequest,
    Processes,
    ProcessInfo,
    PsRequest,
)
from enclavekit_pipeline.wire.messages import decode_payload

MAX_PROCESSES = 100_000  # an enclave that lists processes without end is broken


async def list_jobs(where: Target | Session, request: JobsRequest) -> list[JobInfo]:
    async with open_request(where, request) as stream:
        return decode_payload(JobList, (await receive(stream, Kind.JOBS)).payload).jobs


async def list_processes(where: Target | Session, request: PsRequest) -> tuple[list[ProcessInfo], int]:
    """Return the processes, and how many more there are."""
    found: list[ProcessInfo] = []
    async with open_request(where, request) as stream:
        while len(found) < MAX_PROCESSES:
            part = decode_payload(Processes, (await receive(stream, Kind.PROCESSES)).payload)
            found += part.processes
            if part.last:
                return found, part.omitted
    raise RemoteProtocolError("cannot list processes: the enclave sends them without end")


async def send_kill(where: Target | Session, request: KillRequest) -> None:
    async with open_request(where, request) as stream:
        await receive(stream, Kind.SIGNALLED)


async def show_logs(where: Target | Session, request: LogsRequest) -> None:
    """Write a job's output to ours, kind by kind."""
    async with open_request(where, request) as stream:
        await receive(stream, Kind.JOB)
        await take_job_output(stream)


async def attach(where: Target | Session, request: AttachRequest, *, stdin: bool) -> int:
    """Show what the job writes and, if it takes input, give it ours; return its status, or 0 if we left it running."""
    async with open_request(where, request) as stream:
        info = decode_payload(JobInfo, (await receive(stream, Kind.JOB)).payload)
        left = asyncio.Event()
        loop = asyncio.get_running_loop()
        async with companions() as background:
            for number in FORWARDED_SIGNALS:  # not here: they leave the job, and our terminal in order
                loop.add_signal_handler(number, left.set)
            with own_terminal(stream, background, wanted=info.terminal, raw=stdin and info.stdin):
                if stdin and info.stdin:
                    start(background, send_stdin(stream, left.set if info.terminal else None))
                output = loop.create_task(take_job_output(stream))
                leaving = loop.create_task(left.wait())
                try:
                    await asyncio.wait({output, leaving}, return_when=asyncio.FIRST_COMPLETED)
                    ended = (await output).ended if output.done() else None
                finally:
                    for task in (output, leaving):
                        task.cancel()
                    await asyncio.gather(output, leaving, return_exceptions=True)
                    for number in FORWARDED_SIGNALS:
                        loop.remove_signal_handler(number)
        if ended is not None:
            return status_of(ended)
        print(f"pipeline: {info.job} runs on", file=sys.stderr)
        return 0


async def take_job_output(stream: Stream) -> JobInfo:
    """Write what comes and return what the job is at the end of it."""
    while True:
        frame = await receive(stream, Kind.JOB, Kind.STDOUT, Kind.STDERR, Kind.GAP)
        if frame.kind is Kind.JOB:
            return decode_payload(JobInfo, frame.payload)
        if frame.kind is Kind.GAP:
            count = decode_payload(Gap, frame.payload).count
            print(f"pipeline: {count} bytes of output are no longer kept", file=sys.stderr)
        elif frame.payload:
            await asyncio.to_thread(write_all, TARGETS[frame.kind], frame.payload)
            await stream.consumed(frame)
