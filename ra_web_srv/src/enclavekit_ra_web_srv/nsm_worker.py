# SPDX-License-Identifier: Apache-2.0
"""The one thread that talks to the NSM. Its queue is short and its callers are patient for so long only: a stuck device
costs them a 503, not the server."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from enclavekit_core.errors import DeviceError, EnclavekitError
from enclavekit_nsm.client import NsmClient

MAX_QUEUED = 64  # at some milliseconds a document, a fraction of a second of waiting
DEADLINE_S = 10.0  # a document takes milliseconds; after this long the device is stuck

Value = TypeVar("Value")


class NsmBusyError(EnclavekitError):
    """Too many requests wait for the NSM, or it does not answer."""


class NsmWorker:
    """Owns the device. Raises DeviceError at once if it cannot be opened."""

    def __init__(self, path: str | None) -> None:
        self._path = path
        self._client: NsmClient | None = NsmClient.open(path, DEADLINE_S)
        self._queue: queue.Queue[Callable[[], None] | None] = queue.Queue(MAX_QUEUED)
        # daemon: a thread that is stuck in the device must not hold up the end of the process
        self._thread = threading.Thread(target=self._work, name="nsm", daemon=True)
        self._thread.start()

    async def call(self, request: Callable[[NsmClient], Value]) -> Value:
        """Run `request` with the device. Raises NsmBusyError, DeviceError."""
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
                try:
                    value = request(self._open())
                except (EnclavekitError, OSError) as exc:
                    error = exc if isinstance(exc, EnclavekitError) else DeviceError("use", "the NSM", str(exc))
                    self._drop()
            with contextlib.suppress(RuntimeError):  # the loop has been closed meanwhile
                loop.call_soon_threadsafe(settle, value, error)

        try:
            self._queue.put_nowait(run)
        except queue.Full:
            raise NsmBusyError("cannot ask the NSM: too many requests wait for it") from None
        try:
            return await asyncio.wait_for(answer, DEADLINE_S)
        except TimeoutError:
            raise NsmBusyError(f"cannot ask the NSM: it did not answer within {DEADLINE_S:.0f} s") from None

    def close(self) -> None:
        """End the thread when it has done what is queued."""
        with contextlib.suppress(queue.Full):
            self._queue.put_nowait(None)

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
        while (run := self._queue.get()) is not None:
            run()
        self._drop()
