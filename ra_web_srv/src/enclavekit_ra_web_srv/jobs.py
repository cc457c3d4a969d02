# SPDX-License-Identifier: Apache-2.0
"""Work that `POST /generate` leaves in the background: every file at or below a path is hashed."""

from __future__ import annotations

import asyncio
import collections
import enum
import secrets
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field

from enclavekit_core.errors import EnclavekitError

from enclavekit_ra_web_srv.file_hasher import FileHasher, HasherBusyError, NoSuchFileError, UnstableFileError
from enclavekit_ra_web_srv.known_files import KnownFiles
from enclavekit_ra_web_srv.paths import ConfinedPath

MAX_RUNNING = 16
MAX_OF_CLIENT = 4  # of these
MAX_KEPT = 1000  # of finished jobs; the oldest is forgotten
MAX_FILES = 50_000  # of one job: what the hasher keeps
FILES_AT_ONCE = 8  # of one job, so that jobs share the hashing threads
BUSY_PAUSE_S = 0.1


class JobState(enum.Enum):
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"


class TooManyJobsError(EnclavekitError):
    """MAX_RUNNING jobs are under way, or MAX_OF_CLIENT of one client."""


@dataclass(slots=True)
class Job:
    path: ConfinedPath
    identifier: str = field(default_factory=lambda: secrets.token_hex(8))
    state: JobState = JobState.RUNNING
    hashed: int = 0
    failed: int = 0
    """Files without a hash: deleted meanwhile, unreadable, or changing all the time."""
    error: str | None = None


class Jobs:
    def __init__(self, hasher: FileHasher, known: KnownFiles) -> None:
        self._hasher, self._known = hasher, known
        self._jobs: collections.OrderedDict[str, Job] = collections.OrderedDict()
        self._tasks: dict[asyncio.Task[None], Hashable] = {}  # -> whose job it is

    @property
    def running(self) -> int:
        return len(self._tasks)

    def get(self, identifier: str) -> Job | None:
        return self._jobs.get(identifier)

    async def start(self, path: ConfinedPath, client: Hashable = None) -> tuple[Job, bool]:
        """Start a job; return it and whether `path` is a directory. Raises NoSuchFileError, TooManyJobsError."""
        if len(self._tasks) >= MAX_RUNNING:
            raise TooManyJobsError("cannot start a job: too many are running")
        if client is not None and list(self._tasks.values()).count(client) >= MAX_OF_CLIENT:
            raise TooManyJobsError("cannot start a job: too many of yours are running")
        job = Job(path)
        # held from here on, so that the limit counts those that are only beginning
        begun: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        task = asyncio.ensure_future(self._run(job, begun))
        self._tasks[task] = client
        task.add_done_callback(lambda done: self._tasks.pop(done, None))
        is_directory = await begun
        self._jobs[job.identifier] = job
        while len(self._jobs) > MAX_KEPT:
            self._jobs.popitem(last=False)
        return job, is_directory

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _run(self, job: Job, begun: asyncio.Future[bool]) -> None:
        try:
            files = await self._hasher.list_files(job.path, MAX_FILES)
        except NoSuchFileError as exc:
            begun.set_exception(exc)
            return
        except BaseException:
            begun.cancel()
            raise
        begun.set_result(files != [job.path])
        if len(files) > MAX_FILES:
            job.state, job.error = (
                JobState.FAILED,
                f"cannot hash {job.path.text!r}: it holds more than {MAX_FILES} files",
            )
            return
        waiting = iter(files)
        await asyncio.gather(*(self._hash_from(waiting, job) for _ in range(FILES_AT_ONCE)))
        job.state = JobState.FAILED if job.failed else JobState.DONE
        if job.failed:
            job.error = f"cannot hash {job.failed} of {job.failed + job.hashed} files"

    async def _hash_from(self, waiting: Iterator[ConfinedPath], job: Job) -> None:
        for file in waiting:
            # known before it is hashed, so that whoever asks meanwhile hears "processing"
            self._known.add_generated(file.path)
            while True:
                try:
                    await self._hasher.hash(file)
                    job.hashed += 1
                except HasherBusyError:
                    await asyncio.sleep(BUSY_PAUSE_S)
                    continue
                except NoSuchFileError:
                    self._known.forget_generated(file.path)
                    job.failed += 1
                except UnstableFileError:
                    job.failed += 1
                break
