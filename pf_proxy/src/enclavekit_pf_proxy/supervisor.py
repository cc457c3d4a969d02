# SPDX-License-Identifier: Apache-2.0
"""One process that holds the listening sockets, and workers that serve them.

It also answers for all of them: see `status`.

A reload opens what is new, starts workers for the new plan and lets the old ones go on with the connections they have:
no listening socket that stays is closed for a moment, so nobody who connects meanwhile is turned away. A plan that
cannot be used leaves everything as it was. A worker that dies is replaced; when the supervisor dies, workers drain
and end.
"""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from enclavekit_core.address import Address, TcpAddress, UnixAddress
from enclavekit_core.errors import EnclavekitError, describe_cause
from enclavekit_core.logs import get_logger

from enclavekit_pf_proxy.listeners import AnyListener, describe_listener, fit_listener, open_listener, takes_datagrams
from enclavekit_pf_proxy.loop import Loop
from enclavekit_pf_proxy.plan import Plan, share
from enclavekit_pf_proxy.server import Opened, Server
from enclavekit_pf_proxy.service import Service
from enclavekit_pf_proxy.signals import Signals
from enclavekit_pf_proxy.status.channel import Reporter, make_channel
from enclavekit_pf_proxy.status.desk import Desk
from enclavekit_pf_proxy.status.roster import Roster

if TYPE_CHECKING:
    from enclavekit_pf_proxy.resolver.service import DnsSockets
    from enclavekit_pf_proxy.surroundings import Surroundings

RESTART_S = 1.0  # between two starts of one worker: a fault that is there at once is not met in a spin
BACKLOG = 1024  # for a whole range of clients that connect at once; the kernel's somaxconn may be less
RETIRE = signal.SIGUSR1
PR_SET_PDEATHSIG = 1  # prctl(2)
WATCHED = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD}

Key = tuple[str, int]
"""Address as asked for (port 0 numbered by its place), worker; sockets that workers share have worker 0."""


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
        self._listeners: dict[Key, AnyListener] = {}
        self._workers: dict[int, Worker] = {}
        self._generation = 0
        self._missing: dict[int, float] = {}  # worker -> when to start it
        self._stopping = False
        self._dns: DnsSockets | None = None
        self._dns_listen: TcpAddress | None = None
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
            for listener in self._listeners.values():
                listener.close()
            if self._dns is not None:
                self._dns.close()
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
        opened: dict[Key, AnyListener] = {}
        try:
            for key, service, address in _keys_of(plan):
                if key not in self._listeners:
                    # a second worker's socket is bound to the port that the kernel chose for the first
                    first = opened.get((key[0], 0)) or self._listeners.get((key[0], 0))
                    where = first.bound_address if first is not None else address
                    if first is None and isinstance(address, TcpAddress):
                        # with SO_REUSEPORT alone, another supervisor would share it unseen
                        open_listener(service, address).close()
                    opened[key] = open_listener(service, where, backlog=BACKLOG, reuse_port=True)
            for key, service, _ in _keys_of(plan):
                fit_listener(opened.get(key) or self._listeners[key], service, plan.mark)
            self._surround(plan)
        except EnclavekitError:
            for listener in opened.values():
                listener.close()
            raise
        try:
            self._open_dns(plan)
            self._desk.open(plan.status)
        except EnclavekitError:
            for listener in opened.values():
                listener.close()
            raise
        # sockets of an address that stays are kept even if workers become fewer: clients may wait in their queues
        wanted = {key[0] for key, _, _ in _keys_of(plan)}
        for key in [key for key in self._listeners if key[0] not in wanted]:
            self._listeners.pop(key).close()
        self._listeners.update(opened)
        self._fresh = [describe_listener(listener) for key, listener in opened.items() if key[1] == 0]

    def _surround(self, plan: Plan) -> None:
        """Have routes and rules as `plan` wants them."""
        if self._surroundings is None and ((plan.rules and plan.applies_rules) or plan.network is not None):
            from enclavekit_pf_proxy.surroundings import Surroundings

            self._surroundings = Surroundings()
        if self._surroundings is not None:
            self._surroundings.establish(plan)

    def _open_dns(self, plan: Plan) -> None:
        wanted = plan.dns.listen if plan.dns is not None else None
        if wanted == self._dns_listen:
            return
        fresh = None
        if wanted is not None:
            from enclavekit_pf_proxy.resolver.service import open_sockets

            fresh = open_sockets(wanted)
        if self._dns is not None:
            self._dns.close()
        self._dns, self._dns_listen = fresh, wanted

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
            status = self._work(index, parent, theirs)
        except BaseException as exc:  # nothing may run on into the supervisor's code
            self._log.error("worker failed", worker=index, cause=repr(exc))
        finally:
            os._exit(status)

    def _start_later(self, index: int, exc: OSError) -> None:
        self._log.error("cannot start worker", worker=index, cause=describe_cause(exc))
        self._missing[index] = time.monotonic() + RESTART_S

    def _work(self, index: int, parent: int, channel: socket.socket) -> int:
        """The life of a worker."""
        for inherited in (self._desk, self._roster, self._signals):
            if inherited is not None:
                inherited.give_up()
        self._loop.close()
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            return 0  # it died before we could ask to be told
        opened: list[Opened] = []
        mine: set[Key] = set()
        for number, service in enumerate(self._plan.services):
            offsets = {_key_of(number, service, offset, 0)[0]: offset for offset in range(service.listen.ports)}
            keys = [key for key in self._listeners if key[0] in offsets and self._serves(index, service, key)]
            mine.update(keys)
            limited = replace(service, limits=share(self._plan, service))
            opened.append((limited, [(offsets[key[0]], self._listeners[key]) for key in keys]))
        for key, listener in self._listeners.items():
            listener.leave_file()
            if key not in mine:
                listener.close()
        if self._surroundings is not None:
            self._surroundings.leave()
        server = Server(opened, self._plan.drain_timeout_s, mark=self._plan.mark)
        Reporter(server, channel)
        if self._dns is not None:
            _serve_dns(server, self._dns, self._plan)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: server.stop())
        signal.signal(RETIRE, lambda *_: server.retire())
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # a terminal's goes to the whole group
        signal.pthread_sigmask(signal.SIG_UNBLOCK, WATCHED)
        gc.freeze()  # as for one process alone; here it also leaves pages shared with the supervisor
        server.run()
        return 0

    def _serves(self, index: int, service: Service, key: Key) -> bool:
        """Say whether worker `index` accepts from the socket: all do from one that is shared."""
        if takes_datagrams(service):
            return index == 0  # sessions of one socket are one process's
        return not isinstance(service.listen.first, TcpAddress) or key[1] % self._plan.workers == index


def _serve_dns(server: Server, sockets: DnsSockets, plan: Plan) -> None:
    from enclavekit_pf_proxy.resolver.service import DnsService

    assert plan.gate is not None and plan.dns is not None
    server.when_stopping.append(DnsService(server.loop, sockets, plan.gate, plan.dns).stop)


def _keys_of(plan: Plan) -> list[tuple[Key, Service, Address]]:
    found: dict[Key, tuple[Service, Address]] = {}
    for worker in range(plan.workers):
        for number, service in enumerate(plan.services):
            for offset in range(service.listen.ports):
                found[_key_of(number, service, offset, worker)] = (service, service.listen.at(offset))
    return [(key, *value) for key, value in found.items()]


def _key_of(number: int, service: Service, offset: int, worker: int) -> Key:
    address = service.listen.at(offset)
    text = f"{'udp ' if takes_datagrams(service) else ''}{address}"
    if isinstance(address, UnixAddress):
        return text, 0
    if not address.port:
        text = f"{text} of {service.name or number}"
    # only TCP has SO_REUSEPORT; other sockets are shared
    return text, worker if isinstance(address, TcpAddress) and not takes_datagrams(service) else 0


def _signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass  # ended meanwhile; it is reaped soon
