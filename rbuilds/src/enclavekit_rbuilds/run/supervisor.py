# SPDX-License-Identifier: Apache-2.0
"""What is left beside each enclave: starts proxies, rules and enclave as one transaction, stays until the enclave ends,
and takes everything out again. `supervise` is the process that it runs in.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import subprocess
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
from enclavekit_rbuilds.run.launch_process import LaunchProcess
from enclavekit_rbuilds.run.leftovers import adopt_orphans, settle
from enclavekit_rbuilds.run.model import LaunchError, LaunchPlan, RunningEnclave
from enclavekit_rbuilds.run.nft import put_rules, remove_rules
from enclavekit_rbuilds.run.proxies import describe_network, plan_proxies
from enclavekit_rbuilds.run.proxy_pool import ProxyPool
from enclavekit_rbuilds.run.rules import overlaps
from enclavekit_rbuilds.run.store import EndedEnclave, Record, Store

LOCK_POLL_S = 0.1  # another launch takes from one second to minutes
END_PATIENCE_S = 0.5  # for a report that was sent before the end; who has dropped the enclave waits for that, too
LIST_POLL_S = 5.0  # where the enclave's process cannot be watched
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
        self._process: LaunchProcess | None = None

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
            process = LaunchProcess(self.backend, self.plan, self.front)
            enclave, stderr, status = await process.run(self.current.cid)
            if enclave is not None:
                self._process = process
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
        if self._process is not None and self._process.relay is not None:
            await asyncio.wait({self._process.relay})
        if record.enclave is not None:
            await asyncio.to_thread(self._keep_end, record.enclave)
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

    def _keep_end(self, enclave: RunningEnclave) -> None:
        """Note how it ended, for whoever was not there."""
        end = self._process.end if self._process is not None else None
        try:
            end = end or self.backend.end_of(enclave, END_PATIENCE_S)
        except (EnclavekitError, OSError, subprocess.SubprocessError):
            pass
        status, words = (None, ("nobody has told how its app ended",)) if end is None else (end.status, end.words)
        with contextlib.suppress(OSError):  # a full disk costs the record
            self.store.write_ended(EndedEnclave(enclave, time.time(), status, words))


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
