# SPDX-License-Identifier: Apache-2.0
"""What would block runs in a thread of a pool, to its end whatever happens to whoever waits for it.

As asyncio's `run_in_executor` in `shield`, with two turns of the event loop for each job instead of four: a large copy
hands over a thousand portions for each gigabyte.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Generic, TypeVar

Result = TypeVar("Result")


async def run_in(pool: Executor, function: Callable[..., Result], *args: object) -> Result:
    """Return what `function` returns. It always runs, and to its end, before a cancellation goes on: whoever is
    cancelled takes apart what the thread works on, and a closed descriptor's number soon belongs to another file.
    """
    job = _Job(function, args)
    pool.submit(job.work)
    cancellation = None
    while not job.ended:
        try:
            await job.wait()
        except asyncio.CancelledError as exc:
            cancellation = exc
    if cancellation is not None:
        raise cancellation
    try:
        if job.error is not None:
            raise job.error
        return job.results.pop()
    finally:
        del job  # the error's traceback would hold it, and it the error


class _Job(Generic[Result]):
    def __init__(self, function: Callable[..., Result], args: tuple[object, ...]) -> None:
        self._function, self._args = function, args
        self._loop = asyncio.get_running_loop()
        self._waiting: asyncio.Future[None] | None = None
        self.results: list[Result] = []
        self.error: BaseException | None = None
        self.ended = False

    def work(self) -> None:
        try:
            self.results.append(self._function(*self._args))
        except BaseException as exc:  # whatever it is, it belongs to whoever waits
            self.error = exc
        with contextlib.suppress(RuntimeError):  # the loop has closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._end)

    def _end(self) -> None:
        self.ended = True
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    async def wait(self) -> None:
        """Wait for the end; a cancellation leaves the job as it is."""
        self._waiting = self._loop.create_future()
        await self._waiting
