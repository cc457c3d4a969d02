# SPDX-License-Identifier: Apache-2.0
"""Detached commands: they run on without their caller, and end with the listener at the latest.

A job belongs to the client that started it. The last of its output is kept, and its status, until newer jobs need the
place.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from enclavekit_core.errors import InputError, describe_cause

from enclavekit_pipeline.enclave.child import Child, exit_of
from enclavekit_pipeline.enclave.clients import Grant, Refused, may_see_job
from enclavekit_pipeline.enclave.ending import wait_unreaped
from enclavekit_pipeline.enclave.job_ring import JobRing
from enclavekit_pipeline.enclave.pipes import OutputPipe
from enclavekit_pipeline.enclave.serve_exec import OUTPUT_KINDS, wait_for_end
from enclavekit_pipeline.enclave.workplace import Workplace
from enclavekit_pipeline.wire.exec_messages import Exit
from enclavekit_pipeline.wire.frames import Kind
from enclavekit_pipeline.wire.job_messages import MAX_NAME_CHARS, JobInfo

MAX_JOBS = 64  # kept, running or ended; each holds job_ring.RING_BYTES at most
MAX_JOBS_OF_CLIENT = 16  # of them: one client cannot push out what others want to read


@dataclass
class Job:
    """A detached command, running or ended."""

    id: str
    client: str
    command: str
    child: Child
    ring: JobRing
    has_terminal: bool
    pid: int
    started: float = field(default_factory=time.monotonic)
    ended: Exit | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    """Set and replaced at each change; who waits takes it first and looks then."""
    writing: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Of its input: several may have attached."""
    feeding: set[asyncio.Task[None]] = field(default_factory=set)
    """Who passes input on to it, and has to stop before its pipe is closed."""

    def announce(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()

    @property
    def info(self) -> JobInfo:
        return JobInfo(
            job=self.id,
            client=self.client[:MAX_NAME_CHARS],
            command=self.command[:MAX_NAME_CHARS],
            age_s=int(time.monotonic() - self.started),
            pid=self.pid,
            terminal=self.has_terminal,
            stdin=self.ended is None and self.child.stdin is not None,
            written=self.ring.written,
            ended=self.ended,
        )


class Jobs:
    """Those of one listener."""

    def __init__(self) -> None:
        self._jobs: dict[str, Job] = {}  # in the order of their start
        self._started = 0
        self._tasks: set[asyncio.Task[None]] = set()

    def start(
        self, grant: Grant, command: str, spawn: Callable[[], Child], place: Workplace, timeout_s: float | None
    ) -> Job:
        """Start a job. Raises Refused if there are too many, what `spawn` raises, InputError without a disk."""
        self._make_room(grant.name)
        with contextlib.ExitStack() as stack:
            stack.enter_context(place.command_slot())
            try:
                ring = JobRing()
            except OSError as exc:
                raise InputError("keep the output of", repr(command), describe_cause(exc)) from exc
            child = spawn()
            slot = stack.pop_all()
        self._started += 1
        job = Job(f"j{self._started}", grant.name, command, child, ring, child.terminal is not None, child.process.pid)
        self._jobs[job.id] = job
        task = asyncio.create_task(run_job(job, place, timeout_s, slot))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return job

    def find(self, grant: Grant, job_id: str, *, system: bool) -> Job:
        """Raises InputError if there is none that the client may see: whose it is otherwise is not told."""
        job = self._jobs.get(job_id)
        if job is None or not may_see_job(grant, job.client, system=system):
            raise InputError("find", f"job {job_id}", "there is none, or it is somebody else's")
        return job

    def visible(self, grant: Grant, *, system: bool) -> list[Job]:
        return [job for job in self._jobs.values() if may_see_job(grant, job.client, system=system)]

    async def close(self) -> None:
        """End all that run."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _make_room(self, client: str) -> None:
        """Forget the oldest ended job where one has to go. Raises Refused if all run."""
        own = [job for job in self._jobs.values() if job.client == client]
        for jobs, limit in ((own, MAX_JOBS_OF_CLIENT), (list(self._jobs.values()), MAX_JOBS)):
            if len(jobs) < limit:
                continue
            ended = [job for job in jobs if job.ended is not None]
            if not ended:
                raise Refused(f"{limit} jobs are running already")
            del self._jobs[ended[0].id]
            return  # the ring closes with its last reader


async def run_job(job: Job, place: Workplace, timeout_s: float | None, slot: contextlib.ExitStack) -> None:
    """Keep the job's output until it ends, then its status; a cancellation ends it. Leaves `slot`."""
    child = job.child
    ended = asyncio.create_task(wait_unreaped(child.process.pid, place))
    nobody: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    storing = [
        asyncio.create_task(store_output(job, kind, pipe))
        for kind, pipe in zip(OUTPUT_KINDS, child.outputs, strict=False)
    ]
    timed_out = False
    with slot:
        try:
            timed_out = await wait_for_end(ended, nobody, child, timeout_s)
            child.kill()
            for pipe in child.outputs:
                pipe.finish()
            await asyncio.gather(*storing)
        finally:
            tasks = {*storing, *job.feeding}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            child.kill()
            status = await place.in_thread(child.reap)
            ended.cancel()
            child.close()
            job.ended = exit_of(status, timed_out=timed_out)
            job.announce()


async def store_output(job: Job, kind: Kind, pipe: OutputPipe) -> None:
    while data := await pipe.read():
        job.ring.append(kind, data)
        job.announce()
