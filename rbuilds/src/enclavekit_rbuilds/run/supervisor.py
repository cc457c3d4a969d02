# SPDX-License-Identifier: Apache-2.0
"""The process that rbuilds leaves beside each enclave: it starts proxies, rules and enclave as one transaction, stays
until the enclave ends, and takes everything out again.

It is told what to do by one line of JSON on its standard input, a socket: a LaunchPlan under "launch", or a CID under
"adopt" after another supervisor was killed. It answers with lines of JSON (see `front`). As long as the enclave is not
up, the end of that socket means that nobody wants it any more.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import socket
import sys
import time
from typing import Any

import msgspec
from enclavekit_core.errors import EnclavekitError
from enclavekit_core.processes import ProcessId, boot_id, identify, is_alive

from enclavekit_rbuilds.run.backend import Backend, open_backend
from enclavekit_rbuilds.run.cids import choose_cid
from enclavekit_rbuilds.run.failure import MAX_ATTEMPTS, RETRY_PAUSES_S
from enclavekit_rbuilds.run.front_link import FrontLink
from enclavekit_rbuilds.run.leftovers import settle
from enclavekit_rbuilds.run.model import LaunchError, LaunchPlan, RunningEnclave
from enclavekit_rbuilds.run.nft import put_rules, remove_rules
from enclavekit_rbuilds.run.nitro_commands import LaunchOutput, parse_launch
from enclavekit_rbuilds.run.proxies import describe_network, plan_proxies
from enclavekit_rbuilds.run.proxy_pool import ProxyPool
from enclavekit_rbuilds.run.rules import overlaps
from enclavekit_rbuilds.run.store import Record, Store

LOCK_POLL_S = 0.1  # another launch takes from one second to minutes
LIST_POLL_S = 5.0  # where the enclave's process cannot be watched
CHUNK_BYTES = 64 * 1024
MAX_STDERR_BYTES = 256 * 1024  # progress lines and the last error of a launch
MAX_LINE_BYTES = 1 << 20  # a plan with all the rules that an image's metadata may hold
ADOPT_TIMEOUT_S = 30.0  # a Python start
MAX_RESTARTS = 5  # of one proxy within RESTART_WINDOW_S; then it stays down and says so in its log
RESTART_WINDOW_S = 60.0


class Cancelled(Exception):
    """Whoever asked for the enclave has left, or a signal came."""


class Supervisor:
    """One enclave. `launch` or `adopt`, then `watch`, then `undo`, which works in any state."""

    def __init__(self, store: Store, plan: LaunchPlan, front: FrontLink) -> None:
        self.store, self.plan, self.front = store, plan, front
        self.backend: Backend = open_backend(plan.backend)
        self.pool = ProxyPool(store)
        self.record: Record | None = None
        self.stopping = asyncio.Event()
        self._lock = -1
        self._console: asyncio.subprocess.Process | None = None
        self._relay: asyncio.Task[None] | None = None

    # launch

    async def launch(self) -> None:
        """Start everything. Raises EnclavekitError, Cancelled; then `undo` has still to be called."""
        self.pool.environment = self.backend.proxy_environment()
        handle = await self._lock_launches()
        try:
            adopt_orphans(self.store, settle(self.store, self.front.note))
            record = self._claim()
            self._check_publish()
            for rule in plan_proxies(self.plan, record.cid):
                self._check_wanted()
                # on record before it exists: whatever happens next, it is found
                self._update(proxies=(*self.current.proxies, rule.key))
                try:
                    await asyncio.to_thread(self.pool.acquire, rule, record.cid)
                except EnclavekitError as exc:
                    if rule.is_network:
                        raise
                    self.front.note(f"{exc}; how the app ends will not be known")
            if self.plan.publish:
                self._update(has_rules=True)
                put_rules(self.store, record.cid, self.plan.bind, self.plan.publish)
            await self._start_enclave()
        finally:
            os.close(handle)
        network = describe_network(self.plan, record.cid)
        self.front.send({"started": msgspec.to_builtins(self.current.enclave), "network": network})

    @property
    def current(self) -> Record:
        assert self.record is not None
        return self.record

    def _update(self, **changes: Any) -> None:
        self.record = msgspec.structs.replace(self.current, **changes)
        self.store.write(self.record)

    def _check_wanted(self) -> None:
        if self.stopping.is_set() or self.front.left.is_set():
            raise Cancelled

    async def _lock_launches(self) -> int:
        """Wait until no other launch is under way: two at once fail for want of the heartbeat's port."""
        handle = os.open(self.backend.lock_path(), os.O_RDONLY | os.O_CLOEXEC)
        waiting = False
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return handle
            except BlockingIOError:
                if not waiting:
                    self.front.note("another enclave is being started; waiting for it")
                waiting = True
            try:
                self._check_wanted()
            except Cancelled:
                os.close(handle)
                raise
            await asyncio.sleep(LOCK_POLL_S)

    def _claim(self) -> Record:
        """Choose a CID and take it."""
        taken = {enclave.cid for enclave in self.backend.running()} | set(self.store.cids())
        while True:
            cid = choose_cid(self.plan.cid, self.plan.first_cid, taken)
            handle = self.store.claim(cid)
            if handle is not None:
                break
            taken.add(cid)  # its supervisor is just ending
        self._lock = handle
        self.store.unlink(f"{cid}.end")  # of another enclave with this CID
        me = identify(os.getpid())
        assert me is not None
        self.record = Record(boot_id=boot_id(), supervisor=me, plan=self.plan, cid=cid)
        self.store.write(self.record)
        return self.record

    def _check_publish(self) -> None:
        for other in self.store.records():
            if other.cid == self.current.cid:
                continue
            for mine in self.plan.publish:
                if any(overlaps(mine, theirs) for theirs in other.plan.publish):
                    raise LaunchError("publish", str(mine), f"the enclave with CID {other.cid} has these host ports")

    async def _start_enclave(self) -> None:
        """Run run-enclave, again if it failed for a reason that passes."""
        for attempt in range(MAX_ATTEMPTS):
            self._check_wanted()
            enclave, stderr, status = await self._run_enclave()
            if enclave is not None:
                self._update(enclave=enclave, holder=identify(enclave.pid))
                for line in stderr.splitlines():
                    if "note: " in line:
                        self.front.note(line.partition("note: ")[2])
                self._check_wanted()
                return
            failure = self.backend.failure(stderr, status)
            if not failure.is_transient or attempt == MAX_ATTEMPTS - 1:
                for line in failure.console:
                    self.front.note(f"console: {line}")
                raise LaunchError("run", self.plan.eif, failure.describe(), failure.code)
            pause_s = RETRY_PAUSES_S[attempt]
            self.front.note(f"{failure.code or 'the launch failed'}, which may pass: trying again in {pause_s:.0f} s")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.stopping.wait(), pause_s)

    async def _run_enclave(self) -> tuple[RunningEnclave | None, str, int]:
        """Run run-enclave once; with --attach its console goes on in the background."""
        argv = self.backend.launch_argv(self.plan, self.current.cid)
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        assert process.stdout is not None and process.stderr is not None
        errors = asyncio.create_task(_read_tail(process.stderr))
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
        self._console = process
        self._relay = asyncio.create_task(self._relay_console(process, output, console, errors))
        return parse_launch(output.json or b"", self.plan.backend, True), "", 0

    async def _relay_console(
        self, process: asyncio.subprocess.Process, output: LaunchOutput, console: bytes, errors: asyncio.Task[str]
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
        enclave = self.current.enclave
        app = await asyncio.to_thread(self.backend.exit_status, enclave) if enclave and not failure else None
        self.front.send({"ended": {"status": app, "failure": failure}})

    # adoption

    def adopt(self, record: Record) -> bool:
        """Take over an enclave whose supervisor was killed; False if somebody else has."""
        handle = self.store.claim(record.cid)
        if handle is None:
            return False
        self._lock = handle
        self.pool.environment = self.backend.proxy_environment()
        me = identify(os.getpid())
        assert me is not None
        self.record = msgspec.structs.replace(record, supervisor=me)
        self.store.write(self.record)
        return True

    # watch

    async def watch(self) -> None:
        """Stay until the enclave has ended, or we are told to stop, which ends it."""
        ended = asyncio.create_task(self._wait_for_end())
        proxies = asyncio.create_task(self._keep_proxies())
        told = asyncio.create_task(self.stopping.wait())
        try:
            await asyncio.wait({ended, told}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (ended, proxies, told):
                task.cancel()

    async def _wait_for_end(self) -> None:
        holder = self.current.holder
        if holder is not None:
            await _wait_for_process(holder)
            return
        while await asyncio.to_thread(self._is_listed):  # noqa: ASYNC110 - nothing else says that it has ended
            await asyncio.sleep(LIST_POLL_S)

    def _is_listed(self) -> bool:
        enclave = self.current.enclave
        try:
            return enclave is not None and any(other.id == enclave.id for other in self.backend.running())
        except EnclavekitError:
            return True  # nobody can tell: look again

    async def _keep_proxies(self) -> None:
        await asyncio.gather(*(self._keep_proxy(key) for key in self.current.proxies))

    async def _keep_proxy(self, key: str) -> None:
        """Start a proxy again whenever it ends, MAX_RESTARTS times in a while."""
        restarts: list[float] = []
        while True:
            record = self.store.read_proxy(key)
            if record is None:
                return
            await _wait_for_process(record.process)
            self.pool.reap()
            now = time.monotonic()
            restarts = [moment for moment in restarts if now - moment < RESTART_WINDOW_S] + [now]
            if len(restarts) > MAX_RESTARTS:
                return
            try:
                await asyncio.to_thread(self.pool.restart_if_dead, key, self.current.cid)
            except EnclavekitError as exc:
                print(f"rbuilds: {exc}", file=sys.stderr, flush=True)
                return

    # end

    async def undo(self) -> None:
        """End the enclave if it runs, take out what was put in, and forget it."""
        record = self.record
        if record is None:
            return
        if record.enclave is not None and (record.holder is None or is_alive(record.holder)):
            await asyncio.to_thread(self._end_enclave, record.enclave)
        if self._relay is not None:
            await asyncio.wait({self._relay})
        if record.has_rules:
            try:
                remove_rules(self.store, record.cid)
                self._update(has_rules=False)
            except EnclavekitError as exc:
                print(f"rbuilds: {exc}", file=sys.stderr, flush=True)
        for key in record.proxies:
            await asyncio.to_thread(self.pool.release, key, record.cid)
        if not self.current.has_rules:
            self.store.remove(record.cid)  # else the next command tries again
        os.close(self._lock)
        self.record = None

    def _end_enclave(self, enclave: RunningEnclave) -> None:
        with contextlib.suppress(EnclavekitError):  # it has ended meanwhile; or the next list shows it
            self.backend.terminate(enclave)


async def _read_tail(stream: asyncio.StreamReader) -> str:
    """Return the last MAX_STDERR_BYTES of a stream."""
    data = b""
    while chunk := await stream.read(CHUNK_BYTES):
        data = (data + chunk)[-MAX_STDERR_BYTES:]
    return data.decode(errors="replace")


async def _wait_for_process(process: ProcessId) -> None:
    """Wait until a process, which need not be our child, has ended."""
    try:
        handle = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    try:
        if is_alive(process):  # the handle names what runs now, and that is it
            loop.add_reader(handle, ended.set)
            await ended.wait()
    finally:
        loop.remove_reader(handle)
        os.close(handle)


def adopt_orphans(store: Store, cids: list[int]) -> None:
    """Start supervisors for enclaves that lost theirs, and wait until they have taken over."""
    from enclavekit_rbuilds.run.front import start_supervisor

    for cid in cids:
        with start_supervisor({"adopt": cid}, store) as connection, contextlib.suppress(TimeoutError):
            connection.settimeout(ADOPT_TIMEOUT_S)
            connection.recv(1)


async def supervise(connection: socket.socket) -> None:
    """Do what the first line on `connection` says."""
    front = FrontLink(*await asyncio.open_connection(sock=connection, limit=MAX_LINE_BYTES))
    order = await front.read()
    store = Store()
    adopted = order.get("adopt")
    record = store.read(adopted) if isinstance(adopted, int) else None
    if "launch" not in order and record is None:
        return
    plan = record.plan if record is not None else msgspec.convert(order["launch"], LaunchPlan)
    supervisor = Supervisor(store, plan, front)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(number, supervisor.stopping.set)
    answer: dict[str, Any] | None = None
    try:
        if record is not None:
            if not supervisor.adopt(record):
                return
            front.send({"adopted": record.cid})
        else:
            await supervisor.launch()
        await supervisor.watch()
    except Cancelled:
        pass
    except EnclavekitError as exc:
        answer = {"error": str(exc), "exit_code": exc.exit_code, "code": getattr(exc, "code", "")}
    except Exception as exc:
        # the outermost: a bug of ours is one line for the user, its trace in our log
        answer = {"error": f"cannot run {plan.eif}: {type(exc).__name__}: {exc}", "exit_code": 70, "code": ""}
        raise
    finally:
        await supervisor.undo()
        if answer is not None:
            front.send(answer)  # when nothing is left of it
        await front.close()


def main() -> None:
    connection = socket.socket(fileno=os.dup(sys.stdin.fileno()))
    with open(os.devnull, "rb") as null:
        os.dup2(null.fileno(), sys.stdin.fileno())
    os.chdir("/")
    asyncio.run(supervise(connection))


if __name__ == "__main__":
    main()
