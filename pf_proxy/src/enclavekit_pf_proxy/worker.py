# SPDX-License-Identifier: Apache-2.0
"""The life of one worker process, from its fork to its end: serves its share of what the supervisor holds open."""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import socket
from collections.abc import Collection
from dataclasses import replace

from enclavekit_pf_proxy.held_sockets import HeldSockets
from enclavekit_pf_proxy.plan import Plan, share
from enclavekit_pf_proxy.server import Opened, Server
from enclavekit_pf_proxy.status.channel import Reporter

RETIRE = signal.SIGUSR1
PR_SET_PDEATHSIG = 1  # prctl(2)


def run_worker(
    index: int, plan: Plan, held: HeldSockets, parent: int, channel: socket.socket, blocked: Collection[int]
) -> None:
    """Serve until told to stop, or until the supervisor is gone.

    Args: parent: the supervisor's pid. channel: where it asks for the status. blocked: signals that it had blocked.
    """
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        return  # it died before we could ask to be told
    shares = zip(plan.services, held.keep_mine(plan, index), strict=True)
    opened: list[Opened] = [(replace(service, limits=share(plan, service)), mine) for service, mine in shares]
    server = Server(opened, plan.drain_timeout_s, mark=plan.mark)
    Reporter(server, channel)
    if held.dns is not None:
        from enclavekit_pf_proxy.resolver.service import DnsService

        assert plan.gate is not None and plan.dns is not None
        server.when_stopping.append(DnsService(server.loop, held.dns, plan.gate, plan.dns).stop)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: server.stop())
    signal.signal(RETIRE, lambda *_: server.retire())
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # a terminal's goes to the whole group
    signal.pthread_sigmask(signal.SIG_UNBLOCK, blocked)
    gc.freeze()  # as for one process alone; here it also leaves pages shared with the supervisor
    server.run()
