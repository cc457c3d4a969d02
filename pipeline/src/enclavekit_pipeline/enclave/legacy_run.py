# SPDX-License-Identifier: Apache-2.0
"""Commands of the old protocol: by a shell, with nothing to read, and all that they wrote at their end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from dataclasses import dataclass
from typing import Any

from enclavekit_core.errors import InputError, describe_cause

from enclavekit_pipeline.enclave.ending import wait_unreaped
from enclavekit_pipeline.enclave.pipes import OutputPipe
from enclavekit_pipeline.enclave.root import Root
from enclavekit_pipeline.enclave.workplace import Workplace
from enclavekit_pipeline.wire.legacy_slc import MAX_OUTPUT_BYTES

SHELLS = ("bash", "sh")  # the former is what the Rust listener runs; not every image has it
ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/"}
SIGNAL_BASE = 128
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
                process = spawn_shell(command, place.app_root, pipes[0][1], pipes[1][1])
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
            process = spawn_shell(command, place.app_root, subprocess.DEVNULL, subprocess.DEVNULL)
        except Exception as exc:
            started.set_exception(exc)
            return
        started.set_result(None)
        try:
            await wait_unreaped(process.pid, place)
        finally:
            await end(process, place)


def spawn_shell(command: str, root: Root, stdout: int, stderr: int) -> subprocess.Popen[bytes]:
    """Start it in `root`, as a session of its own. Raises InputError."""

    def enter() -> None:
        # runs in the child between fork and exec: system calls only
        if root.path != "/":
            os.fchdir(root.descriptor)
            os.chroot(".")
        os.chdir("/")

    for shell in SHELLS:
        try:
            return subprocess.Popen(
                [shell, "-c", "--", command],
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                env=ENVIRONMENT,
                start_new_session=True,
                preexec_fn=enter,
            )
        except FileNotFoundError:
            continue
        except (OSError, subprocess.SubprocessError) as exc:
            raise InputError("run", "a shell", describe_cause(exc)) from exc
    raise InputError("run", "a shell", f"there is none of {', '.join(SHELLS)}")


async def collect(pipe: OutputPipe) -> bytes:
    """Return what comes out of a pipe, without what is too much."""
    kept, dropped = bytearray(), False
    while data := await pipe.read():
        room = MAX_OUTPUT_BYTES - len(kept)
        kept += data[:room]
        dropped = dropped or len(data) > room
    return bytes(kept) + (CUT if dropped else b"")


def kill(process: subprocess.Popen[bytes]) -> None:
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)


async def end(process: subprocess.Popen[bytes], place: Workplace) -> None:
    if process.returncode is None:
        # of one that has ended by itself, only the number is left: what it has left behind may go on
        if process.poll() is None:
            kill(process)
        await place.in_thread(process.wait)


def status_of(returncode: int) -> int:
    return returncode if returncode >= 0 else SIGNAL_BASE - returncode
