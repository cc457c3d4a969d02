# SPDX-License-Identifier: Apache-2.0
"""What callers do with jobs: start, list, read, enter, signal."""

from __future__ import annotations

import asyncio

from enclavekit_core.errors import InputError, RemoteProtocolError, describe_cause

from enclavekit_pipeline.channel.mux import Stream
from enclavekit_pipeline.enclave.child import spawn
from enclavekit_pipeline.enclave.clients import Grant, Refused
from enclavekit_pipeline.enclave.jobs import Job, Jobs
from enclavekit_pipeline.enclave.processes import uid_of, works_in
from enclavekit_pipeline.enclave.serve_exec import FORWARDED_SIGNALS, OUTPUT_KINDS
from enclavekit_pipeline.enclave.sessions import signal_process
from enclavekit_pipeline.enclave.workplace import Workplace
from enclavekit_pipeline.wire.exec_messages import ExecRequest, WindowSize
from enclavekit_pipeline.wire.frames import MAX_PAYLOAD_BYTES, Frame, Kind
from enclavekit_pipeline.wire.job_messages import (
    AttachRequest,
    Gap,
    JobList,
    JobsRequest,
    KillRequest,
    LogsRequest,
)
from enclavekit_pipeline.wire.messages import Opened, decode_payload, encode_payload


async def serve_detached(request: ExecRequest, grant: Grant, stream: Stream, place: Workplace, jobs: Jobs) -> str:
    """Start a job and say which it is. Raises what `Jobs.start` does."""
    root = place.root_of(request)
    job = jobs.start(
        grant,
        request.argv[0],
        lambda: spawn(request, grant, root, place.starter, place.groups),
        place,
        request.timeout_s,
    )
    await stream.send(Kind.OPENED, encode_payload(Opened()))
    await stream.send(Kind.JOB, encode_payload(job.info))
    return f"job {job.id}"


async def serve_jobs(request: JobsRequest, grant: Grant, stream: Stream, jobs: Jobs) -> str:
    listed = [job.info for job in jobs.visible(grant, system=request.system)]
    await stream.send(Kind.JOBS, encode_payload(JobList(jobs=listed)))
    return f"{len(listed)} jobs"


async def serve_logs(request: LogsRequest, grant: Grant, stream: Stream, jobs: Jobs) -> str:
    """Send what is kept of the output, and with `follow` what comes, to the job's end."""
    job = jobs.find(grant, request.job, system=request.system)
    await stream.send(Kind.JOB, encode_payload(job.info))
    sending = asyncio.create_task(send_job_output(stream, job, 0, follow=request.follow))
    return await until_sent(sending, asyncio.create_task(refuse_frames(stream)))


async def serve_attach(request: AttachRequest, grant: Grant, stream: Stream, jobs: Jobs) -> str:
    """Send what the job writes from now on, and give it what the caller types; the caller's end is not the job's."""
    job = jobs.find(grant, request.job, system=request.system)
    if request.window is not None:
        job.child.resize(request.window)
    position = job.ring.written
    await stream.send(Kind.JOB, encode_payload(job.info))
    sending = asyncio.create_task(send_job_output(stream, job, position, follow=True))
    return await until_sent(sending, asyncio.create_task(take_attached_frames(stream, job)))


async def until_sent(sending: asyncio.Task[str], caller: asyncio.Task[None]) -> str:
    """Return what `sending` does. Raises what `caller` ends with, if that is first."""
    try:
        await asyncio.wait({sending, caller}, return_when=asyncio.FIRST_COMPLETED)
        if not sending.done():
            caller.result()
        return await sending
    finally:
        for task in (sending, caller):
            task.cancel()
        await asyncio.gather(sending, caller, return_exceptions=True)


async def send_job_output(stream: Stream, job: Job, position: int, *, follow: bool) -> str:
    """Send output from `position` on, then what the job is. A slow caller misses some, and is told how much."""
    end = None if follow else job.ring.written
    while True:
        changed, ended = job.changed, job.ended
        while (end is None or position < end) and (piece := job.ring.read(position, MAX_PAYLOAD_BYTES)) is not None:
            if piece.start > position:
                await stream.send(Kind.GAP, encode_payload(Gap(count=piece.start - position)))
            await stream.send_data(piece.kind, piece.data)
            position = piece.end
        if ended is not None or not follow:
            break
        await changed.wait()
    for kind in OUTPUT_KINDS:
        await stream.send_end(kind)
    await stream.send(Kind.JOB, encode_payload(job.info))
    return f"sent {job.id}"


async def refuse_frames(stream: Stream) -> None:
    raise unexpected(await stream.receive())


async def take_attached_frames(stream: Stream, job: Job) -> None:
    """Pass input, signals and sizes on until the caller goes away; only then does this end, with the reason."""
    chunks: asyncio.Queue[Frame] = asyncio.Queue()  # bounded by the credit of the stream
    feeding = asyncio.create_task(feed_job(stream, job, chunks))
    job.feeding.add(feeding)
    feeding.add_done_callback(job.feeding.discard)
    try:
        while True:
            frame = await stream.receive()
            if frame.kind is Kind.STDIN:
                chunks.put_nowait(frame)
            elif frame.kind is Kind.SIGNAL and len(frame.payload) == 1 and frame.payload[0] in FORWARDED_SIGNALS:
                job.child.signal(frame.payload[0])
            elif frame.kind is Kind.RESIZE:
                job.child.resize(decode_payload(WindowSize, frame.payload))
            else:
                raise unexpected(frame)
    finally:
        feeding.cancel()
        await asyncio.gather(feeding, return_exceptions=True)


async def feed_job(stream: Stream, job: Job, chunks: asyncio.Queue[Frame]) -> None:
    while True:
        frame = await chunks.get()
        async with job.writing:
            await job.child.write(frame.payload)
            if frame.end:
                await job.child.end_input()
        await stream.consumed(frame)
        if frame.end:
            return


def unexpected(frame: Frame) -> RemoteProtocolError:
    return RemoteProtocolError(f"cannot read frame: {frame.kind.name} does not belong here")


async def serve_kill(request: KillRequest, grant: Grant, stream: Stream, place: Workplace, jobs: Jobs) -> str:
    """Signal a job's whole session, or one process. Raises InputError, Refused."""
    if request.job is not None:
        job = jobs.find(grant, request.job, system=request.system)
        if job.ended is not None:
            raise InputError("signal", f"job {job.id}", "it has ended")
        job.child.kill(request.signal)
    else:
        assert request.pid is not None
        kill_process(request, request.pid, grant, place)
    await stream.send(Kind.SIGNALLED)
    return f"signal {request.signal}"


def kill_process(request: KillRequest, pid: int, grant: Grant, place: Workplace) -> None:
    """Signal a process of the app's root, or with --system any; only its own user's if the entry names one.

    Raises: InputError, Refused.
    """
    uid = None if grant.user is None else place.root_of(request).find_user(grant.user)[0]

    def wanted(pid: int) -> bool:
        if uid is not None and uid_of(pid) != uid:
            raise Refused(f"{grant.name} may signal processes of {grant.user} only")
        return request.system or works_in(place.app_root, pid)

    try:
        if signal_process(pid, request.signal, wanted):
            return
        raise InputError("signal", f"process {pid}", "there is none in the app's root")
    except OSError as exc:
        raise InputError("signal", f"process {pid}", describe_cause(exc)) from exc
