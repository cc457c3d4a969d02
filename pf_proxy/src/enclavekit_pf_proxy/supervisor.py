# SPDX-License-Identifier: Apache-2.0
"""One process that holds the listening sockets, and workers that serve them.

It also answers for all of them: see `status`.

A reload opens what is new, starts workers for the new plan and lets the old ones go on with the connections they have.
A plan that cannot be used leaves everything as it was. A worker that dies is replaced; when the supervisor dies,
workers drain and end.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from enclavekit_core.errors import EnclavekitError, describe_cause
from enclavekit_core.logs import get_logger

from enclavekit_pf_proxy.held_sockets import HeldSockets
from enclavekit_pf_proxy.loop import Loop
from enclavekit_pf_proxy.plan import Plan
from enclavekit_pf_proxy.signals import Signals
from enclavekit_pf_proxy.status.channel import make_channel
from enclavekit_pf_proxy.status.desk import Desk
from enclavekit_pf_proxy.status.roster import Roster
from enclavekit_pf_proxy.worker import RETIRE, run_worker

if TYPE_CHECKING:
    from enclavekit_pf_proxy.surroundings import Surroundings

RESTART_S = 1.0  # between two starts of one worker: a fault that is there at once is not met in a spin
WATCHED = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD}


@dataclass(slots=True)
class Worker:
    index: int
    started: float
    generation: int


class Supervisor:
    """`run` returns after SIGTERM or SIGINT."""

    def __init__(self, load: Callable[[], Plan], prepare: Callable[[Plan], Plan], announce: Callable[[str], None]):
        """`load` gives the plan, now and at each reload; `prepare` fits it to the process (descriptors); `announce` is
        told of each address once it is listened on.
        """
        self._load, self._prepare, self._announce = load, prepare, announce
        self._log = get_logger("pf-proxy")
        self._held = HeldSockets()
        self._workers: dict[int, Worker] = {}
        self._generation = 0
        self._missing: dict[int, float] = {}  # worker -> when to start it
        self._stopping = False
        self._fresh: list[str] = []
        self._surroundings: Surroundings | None = None
        self._loop = Loop()
        self._roster = Roster(self._loop)
        self._desk = Desk(self._loop, self._roster.ask)
        self._signals: Signals | None = None
        self._plan = prepare(load())

    def run(self) -> int:
        """Serve. Raises TransportError if it cannot listen at the start."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, WATCHED)
        try:
            self._signals = Signals(self._loop, WATCHED, self._catch)
            self._open(self._plan)
            self._start_generation()
            while self._workers or self._missing:
                self._wait()
        finally:
            for pid in self._workers:
                _signal(pid, signal.SIGKILL)
            self._held.close()
            if self._surroundings is not None:
                self._surroundings.remove()
            self._desk.close()
            self._roster.close()
            if self._signals is not None:
                self._signals.close()
            self._loop.close()
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return 0

    # signals and children

    def _wait(self) -> None:
        self._loop.run_round(min(self._missing.values(), default=None))
        for index, when in list(self._missing.items()):
            if when <= time.monotonic():
                del self._missing[index]
                self._fork(index)

    def _catch(self, number: int) -> None:
        if number == signal.SIGCHLD:
            self._reap()
        elif number == signal.SIGHUP and not self._stopping:
            self._reload()
        elif number in (signal.SIGTERM, signal.SIGINT):
            self._stop()

    def _stop(self) -> None:
        self._stopping = True
        self._missing.clear()
        # the sockets close when workers do, so that what is in their queues is still served or refused by them
        for pid in self._workers:
            _signal(pid, signal.SIGTERM)

    def _reap(self) -> None:
        while self._workers:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            worker = self._workers.pop(pid, None)
            if worker is None or worker.generation != self._generation or self._stopping:
                continue
            code = os.waitstatus_to_exitcode(status)
            self._log.error("worker ended", worker=worker.index, pid=pid, code=code)
            self._missing[worker.index] = max(time.monotonic(), worker.started + RESTART_S)

    def _reload(self) -> None:
        try:
            plan = self._prepare(self._load())
            self._open(plan)
        except EnclavekitError as exc:
            self._log.error("cannot reload, going on as before", cause=str(exc))
            return
        self._plan = plan
        old = list(self._workers)
        self._missing.clear()
        self._start_generation()
        for pid in old:
            _signal(pid, RETIRE)
        self._log.info("reloaded", listeners=len(plan.services), workers=plan.workers)

    # sockets

    def _open(self, plan: Plan) -> None:
        """Have exactly what `plan` needs open; on failure what was open before stays."""
        opened = self._held.open_missing(plan)
        try:
            self._surround(plan)
            self._held.open_dns(plan)
            self._desk.open(plan.status)
        except EnclavekitError:
            for listener in opened.values():
                listener.close()
            raise
        self._fresh = self._held.adopt(plan, opened)

    def _surround(self, plan: Plan) -> None:
        """Have routes and rules as `plan` wants them."""
        if self._surroundings is None and ((plan.rules and plan.applies_rules) or plan.network is not None):
            from enclavekit_pf_proxy.surroundings import Surroundings

            self._surroundings = Surroundings()
        if self._surroundings is not None:
            self._surroundings.establish(plan)

    # workers

    def _start_generation(self) -> None:
        self._generation += 1
        for index in range(self._plan.workers):
            self._fork(index)
        for address in self._fresh:
            self._log.info("listening", listen=address)
            self._announce(address)

    def _fork(self, index: int) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        parent = os.getpid()
        try:
            ours, theirs = make_channel()
        except OSError as exc:
            self._start_later(index, exc)
            return
        try:
            pid = os.fork()
        except OSError as exc:
            ours.close()
            theirs.close()
            self._start_later(index, exc)
            return
        if pid:
            theirs.close()
            self._roster.add(ours)
            self._workers[pid] = Worker(index, time.monotonic(), self._generation)
            return
        status = 70
        try:
            ours.close()
            self._work(index, parent, theirs)
            status = 0
        except BaseException as exc:  # nothing may run on into the supervisor's code
            self._log.error("worker failed", worker=index, cause=repr(exc))
        finally:
            os._exit(status)

    def _start_later(self, index: int, exc: OSError) -> None:
        self._log.error("cannot start worker", worker=index, cause=describe_cause(exc))
        self._missing[index] = time.monotonic() + RESTART_S

    def _work(self, index: int, parent: int, channel: socket.socket) -> None:
        """The life of a worker."""
        for inherited in (self._desk, self._roster, self._signals):
            if inherited is not None:
                inherited.give_up()
        self._loop.close()
        if self._surroundings is not None:
            self._surroundings.leave()
        run_worker(index, self._plan, self._held, parent, channel, WATCHED)


def _signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass  # ended meanwhile; it is reaped soon
