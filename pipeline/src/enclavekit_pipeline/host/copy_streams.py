# SPDX-License-Identifier: Apache-2.0
"""Standard input and output as the ends of a copy: no tree, no name, no resumption.

Both may block for ever, and nothing can interrupt that; hence they are used in daemon threads, which a copy that is
given up leaves behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from enclavekit_core.errors import InputError, describe_cause

from enclavekit_pipeline.channel.batch import Batch
from enclavekit_pipeline.wire.tree_content import ContentHash, chunk_bytes
from enclavekit_pipeline.wire.tree_receiver import Hole, Made, TreeReceiver
from enclavekit_pipeline.wire.tree_records import Data, End, Entry, EntryType, LeftOut, data_header
from enclavekit_pipeline.wire.tree_sender import TreeSender

STDIN, STDOUT = 0, 1
STDIN_MODE = 0o644
READ_BYTES = 256 * 1024
ZERO_BLOCK = bytes(256 * 1024)
Result = TypeVar("Result")


class StdinSource:
    """Whatever comes, as one file."""

    def __init__(self) -> None:
        self.sender = TreeSender()
        self.left_out: list[LeftOut] = []
        self._content = ContentHash(chunk_bytes(0))
        self._announced = False

    @property
    def moved(self) -> int:
        return self._content.size

    def next_batch(self, answers: list[bytes]) -> Batch:
        for answer in answers:
            self.sender.feed(answer)
        if not self._announced:
            self._announced = True
            return Batch(self.sender.announce(Entry(EntryType.FILE, b"", STDIN_MODE, mtime_ns=time.time_ns())))
        try:
            data = os.read(STDIN, READ_BYTES)
        except OSError as exc:
            raise InputError("read", "standard input", describe_cause(exc)) from exc
        if not data:
            return Batch(self.sender.end_file(End(self._content.size, self._content.digest())), finished=True)
        self._content.update(data)
        return Batch(data_header(len(data)) + data)

    def measure(self) -> int:
        return 0

    def close(self) -> None:
        """Nothing is kept open."""


class StdoutSink:
    """Writes content as it comes; what a wrong digest means for what was written already is for the reader to judge by
    the exit code."""

    def __init__(self, label: str) -> None:
        self._label = label
        self.receiver = TreeReceiver(unsafe_links=False, may_ask=False)
        self.left_out: list[LeftOut] = []

    @property
    def moved(self) -> int:
        return self.receiver.moved

    def take(self, parts: Sequence[bytes | memoryview]) -> bytes:
        for part in parts:
            for action in self.receiver.feed(part):
                match action:
                    case Data(data):
                        write_all(data)
                    case Hole(count):
                        for start in range(0, count, len(ZERO_BLOCK)):
                            write_all(ZERO_BLOCK[: count - start])
                    case Made():
                        raise InputError("copy", self._label, "it is a directory")
        return b""

    def finish(self) -> None:
        self.receiver.finish()

    def close(self) -> None:
        """Nothing is kept open."""


def write_all(data: bytes | memoryview) -> None:
    view = memoryview(data)
    try:
        while view:
            view = view[os.write(STDOUT, view) :]
    except BrokenPipeError:
        raise  # whoever read our output has left; no error of ours
    except OSError as exc:
        raise InputError("write", "standard output", describe_cause(exc)) from exc


async def in_daemon_thread(function: Callable[..., Result], *args: object) -> Result:
    """Run what may block for ever; a cancellation does not wait for it."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Result] = loop.create_future()

    def settle(result: Result | None, error: BaseException | None) -> None:
        if done.cancelled():
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(result)  # type: ignore[arg-type]  # there is one if there is no error

    def work() -> None:
        result, error = None, None
        try:
            result = function(*args)
        except BaseException as exc:  # whatever it is, it belongs to whoever waits
            error = exc
        with contextlib.suppress(RuntimeError):  # the loop has closed: nobody waits any more
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=work, name="standard stream", daemon=True).start()
    return await done
