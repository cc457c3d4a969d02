# SPDX-License-Identifier: Apache-2.0
"""One run of `run-enclave`: its answer, its complaints and, with --attach, the console that goes on after it."""

from __future__ import annotations

import asyncio
import contextlib

from enclavekit_rbuilds.run.backend import Backend
from enclavekit_rbuilds.run.front_link import FrontLink
from enclavekit_rbuilds.run.model import AppEnd, LaunchPlan, RunningEnclave
from enclavekit_rbuilds.run.nitro_commands import LaunchOutput, parse_launch

CHUNK_BYTES = 64 * 1024
MAX_STDERR_BYTES = 256 * 1024  # progress lines and the last error of a launch


class LaunchProcess:
    """Runs it once; `relay` is the task that passes the console on, if there is one, and learns the app's `end`."""

    def __init__(self, backend: Backend, plan: LaunchPlan, front: FrontLink) -> None:
        self.backend, self.plan, self.front = backend, plan, front
        self.relay: asyncio.Task[None] | None = None
        self.end: AppEnd | None = None

    async def run(self, cid: int) -> tuple[RunningEnclave | None, str, int]:
        """Return the enclave, or what was said and the status it failed with."""
        argv = self.backend.launch_argv(self.plan, cid)
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        assert process.stdout is not None and process.stderr is not None
        errors = asyncio.create_task(read_tail(process.stderr))
        output, console = LaunchOutput(), b""
        # it cannot be taken back half-way: an interrupted run-enclave may leave an enclave behind
        while output.json is None or not self.plan.attach:
            chunk = await process.stdout.read(CHUNK_BYTES)
            if not chunk:
                console += output.feed_eof()
                break
            console += output.feed(chunk)
        if not self.plan.attach or not (output.json or b"").strip():
            status = await process.wait()
            stderr = await errors
            if status:
                return None, stderr, status
            return parse_launch(output.json or b"", self.plan.backend, self.plan.debug), stderr, 0
        enclave = parse_launch(output.json or b"", self.plan.backend, True)
        self.relay = asyncio.create_task(self._relay_console(enclave, process, output, console, errors))
        return enclave, "", 0

    async def _relay_console(
        self,
        enclave: RunningEnclave,
        process: asyncio.subprocess.Process,
        output: LaunchOutput,
        console: bytes,
        errors: asyncio.Task[str],
    ) -> None:
        """Pass the console on as long as somebody reads it; then say how the app ended."""
        assert process.stdout is not None
        while not self.front.left.is_set():
            if console:
                await self.front.send_console(console)
            reading = asyncio.ensure_future(process.stdout.read(CHUNK_BYTES))
            leaving = asyncio.ensure_future(self.front.left.wait())
            await asyncio.wait({reading, leaving}, return_when=asyncio.FIRST_COMPLETED)
            leaving.cancel()
            if not reading.done():
                reading.cancel()
                break
            chunk = reading.result()
            console = output.feed(chunk) if chunk else output.feed_eof()
            if not chunk:
                await self.front.send_console(console)
                break
        if self.front.left.is_set():
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
        status = await process.wait()
        failure = self.backend.failure(await errors, status).describe() if status > 0 else ""
        app = None if failure else await asyncio.to_thread(self.backend.end_of, enclave)
        self.end = app
        status_of_app, words = (None, ()) if app is None else (app.status, app.words)
        self.front.send({"ended": {"status": status_of_app, "words": words, "failure": failure}})


async def read_tail(stream: asyncio.StreamReader) -> str:
    """Return the last MAX_STDERR_BYTES of a stream."""
    data = b""
    while chunk := await stream.read(CHUNK_BYTES):
        data = (data + chunk)[-MAX_STDERR_BYTES:]
    return data.decode(errors="replace")
