# SPDX-License-Identifier: Apache-2.0
"""Commands of the old protocol: by a shell, with nothing to read, and all that they wrote at their end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from dataclasses import dataclass
from typing import Any

from enclavekit_core.errors import InputError

from enclavekit_pipeline.enclave.ending import has_ended, wait_unreaped
from enclavekit_pipeline.enclave.forker import REPORT, Step
from enclavekit_pipeline.enclave.pipes import OutputPipe
from enclavekit_pipeline.enclave.root import Root
from enclavekit_pipeline.enclave.sessions import signal_session
from enclavekit_pipeline.enclave.shell import is_program
from enclavekit_pipeline.enclave.starting import Process
from enclavekit_pipeline.enclave.workplace import Workplace
from enclavekit_pipeline.wire.legacy_slc import MAX_OUTPUT_BYTES

SHELLS = ("bash", "sh")  # the former is what the Rust listener runs; not every image has it
ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/"}
SIGNAL_BASE = 128
FIRST_EXTRA = REPORT + 1  # descriptor of an order, after those that every command has
CUT = b"\npipeline: output beyond %d bytes is dropped\n" % MAX_OUTPUT_BYTES


@dataclass(frozen=True)
class Output:
    stdout: bytes
    stderr: bytes
    status: int
    """128+n for signal n: the Rust client takes "ended by a signal" for success."""


async def run_command(command: str, place: Workplace, gone: asyncio.Future[bytes]) -> Output:
    """Run it and return what it wrote; it is killed when `gone` is done. Raises InputError, Refused."""
    with place.command_slot():
        pipes = [os.pipe2(os.O_CLOEXEC) for _ in range(2)]
        outputs = [OutputPipe(read) for read, _ in pipes]
        try:
            try:
                process = spawn_shell(command, place, pipes[0][1], pipes[1][1])
            finally:
                for _, write in pipes:
                    os.close(write)
            collecting = [asyncio.create_task(collect(pipe)) for pipe in outputs]
            ended = asyncio.create_task(wait_unreaped(process.pid, place))
            try:
                waiting: set[asyncio.Future[Any]] = {ended, gone}
                await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                if not ended.done():
                    kill(process)
                    await ended
                for pipe in outputs:
                    pipe.finish()  # whoever else still holds it, as a daemon does
                stdout, stderr = await asyncio.gather(*collecting)
                return Output(stdout, stderr, status_of(process.wait()))
            finally:
                for task in collecting:
                    task.cancel()
                await asyncio.gather(*collecting, return_exceptions=True)
                await end(process, place)
                ended.cancel()
        finally:
            for pipe in outputs:
                pipe.close()


async def run_in_background(command: str, place: Workplace, started: asyncio.Future[None]) -> None:
    """Run it with its output dropped; `started` learns whether it could be. It ends with the listener at the latest."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(place.command_slot())
            null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
            stack.callback(os.close, null)
            process = spawn_shell(command, place, null, null)
        except Exception as exc:
            started.set_exception(exc)
            return
        started.set_result(None)
        try:
            await wait_unreaped(process.pid, place)
        finally:
            await end(process, place)


def spawn_shell(command: str, place: Workplace, stdout: int, stderr: int) -> Process:
    """Start it in the app's root, as a session of its own that ends with the listener. Raises InputError."""
    root = place.app_root
    shell, path = find_shell(root)
    steps: list[Step] = []
    if root.path != "/":
        steps += [("enter its root", "enter", FIRST_EXTRA), ("enter its root", "chroot", ".")]
    steps += [("enter /", "chdir", "/"), ("be tied to the listener", "die-with", os.getpid())]
    argv = [os.fsencode(word) for word in (shell, "-c", "--", command)]
    environment = {os.fsencode(name): os.fsencode(value) for name, value in ENVIRONMENT.items()}
    null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    try:
        descriptors = [null, stdout, stderr, root.descriptor]
        return place.starter.start(([os.fsencode(path)], argv, environment, steps), descriptors)
    finally:
        os.close(null)


def find_shell(root: Root) -> tuple[str, str]:
    """Return (name, path). Raises InputError if there is none."""
    for shell in SHELLS:
        for folder in ENVIRONMENT["PATH"].split(":"):
            if is_program(root, f"{folder}/{shell}"):
                return shell, f"{folder}/{shell}"
    raise InputError("run", "a shell", f"there is none of {', '.join(SHELLS)}")


async def collect(pipe: OutputPipe) -> bytes:
    """Return what comes out of a pipe, without what is too much."""
    kept, dropped = bytearray(), False
    while data := await pipe.read():
        room = MAX_OUTPUT_BYTES - len(kept)
        kept += data[:room]
        dropped = dropped or len(data) > room
    return bytes(kept) + (CUT if dropped else b"")


def kill(process: Process) -> None:
    if process.returncode is None:
        signal_session(process.pid, signal.SIGKILL)


async def end(process: Process, place: Workplace) -> None:
    """Kill it if it still runs, and reap it."""
    if process.returncode is None:
        # of one that has ended by itself, only the number is left: what it has left behind may go on
        if not has_ended(process.pid):
            kill(process)
        await place.in_thread(process.wait)


def status_of(returncode: int) -> int:
    return returncode if returncode >= 0 else SIGNAL_BASE - returncode
