# SPDX-License-Identifier: Apache-2.0
"""The one thread that talks to the NSM. Its queue is short, clients take turns, and callers are patient for so long
only: a stuck device costs them a 503, not the server."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, TypeVar

from enclavekit_core.errors import DeviceError, EnclavekitError
from enclavekit_nsm.client import NsmClient

from enclavekit_ra_web_srv.fair_queue import FairQueue

MAX_QUEUED = 64  # at some milliseconds a document, a fraction of a second of waiting
MAX_OF_CLIENT = 8  # of these, so that eight clients fill the queue, not one
DEADLINE_S = 10.0  # a document takes milliseconds; after this long the device is stuck
OURSELVES = "ra-web-srv"  # the client of what nobody asked for

Value = TypeVar("Value")


class NsmTimeoutError(EnclavekitError):
    """The NSM does not answer."""


@dataclass(slots=True)
class NsmCounters:
    """Since the start."""

    calls: int = 0
    errors: int = 0
    timeouts: int = 0
    """Callers who left; what they wanted may have been done later."""
    refused: int = 0
    """Because the queue, or the client's part of it, was full."""
    busy_s: float = 0.0
    """Spent in the device."""


class NsmWorker:
    """Owns the device. Raises DeviceError at once if it cannot be opened."""

    def __init__(self, path: str | None) -> None:
        self._path = path
        self._client: NsmClient | None = NsmClient.open(path, DEADLINE_S)
        self._queue: FairQueue[Callable[[], None]] = FairQueue("the NSM", MAX_QUEUED, MAX_OF_CLIENT)
        self._changed = threading.Condition()
        self._closing = False
        self.counters = NsmCounters()
        # daemon: a thread that is stuck in the device must not hold up the end of the process
        self._thread = threading.Thread(target=self._work, name="nsm", daemon=True)
        self._thread.start()

    @property
    def queued(self) -> int:
        return len(self._queue)

    async def call(self, request: Callable[[NsmClient], Value], client: Hashable = OURSELVES) -> Value:
        """Run `request` with the device. Raises QueueFullError, ClientFullError, NsmTimeoutError, DeviceError."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Value] = loop.create_future()

        def settle(value: Value | None, error: BaseException | None) -> None:
            if answer.done():
                return  # the caller has gone
            if error is not None:
                answer.set_exception(error)
            else:
                answer.set_result(value)  # type: ignore[arg-type]  # None only if that is what Value is

        def run() -> None:
            value: Value | None = None
            error: BaseException | None = None
            if not answer.cancelled():
                started_s = time.monotonic()
                try:
                    value = request(self._open())
                except (EnclavekitError, OSError) as exc:
                    error = exc if isinstance(exc, EnclavekitError) else DeviceError("use", "the NSM", str(exc))
                    self.counters.errors += 1
                    self._drop()
                self.counters.calls += 1
                self.counters.busy_s += time.monotonic() - started_s
            with contextlib.suppress(RuntimeError):  # the loop has been closed meanwhile
                loop.call_soon_threadsafe(settle, value, error)

        with self._changed:
            try:
                self._queue.push(client, run)
            except EnclavekitError:
                self.counters.refused += 1
                raise
            self._changed.notify()
        try:
            return await asyncio.wait_for(answer, DEADLINE_S)
        except TimeoutError:
            self.counters.timeouts += 1
            raise NsmTimeoutError(f"cannot ask the NSM: it did not answer within {DEADLINE_S:.0f} s") from None

    def close(self) -> None:
        """End the thread when it has done what is queued."""
        with self._changed:
            self._closing = True
            self._changed.notify()

    def _open(self) -> NsmClient:
        if self._client is None:
            self._client = NsmClient.open(self._path, DEADLINE_S)
        return self._client

    def _drop(self) -> None:
        """Open the device anew for the next request: after an error its stream may be in the middle of a frame."""
        client: Any = self._client
        self._client = None
        if client is not None:
            client.close()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: len(self._queue) or self._closing)
                if not len(self._queue):
                    break
                run = self._queue.pop()
            run()
        self._drop()
