# SPDX-License-Identifier: Apache-2.0
"""Puts the parts together: listens first, then follows the bus, and stops in order."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from typing import Any

from aiohttp import web
from enclavekit_attestation.binding import TlsIdentity
from enclavekit_core.address import VsockAddress, parse_address
from enclavekit_core.aio import end_tasks
from enclavekit_core.bus import SERVICE_RA
from enclavekit_core.bus_connection import Bus, load_credentials
from enclavekit_core.errors import ConfigError
from enclavekit_core.logs import get_logger
from enclavekit_core.streams import Listener
from enclavekit_core.tls import server_context

from enclavekit_ra_web_srv.attest_ahead import AttestAhead
from enclavekit_ra_web_srv.config import Config
from enclavekit_ra_web_srv.evidence import Evidence
from enclavekit_ra_web_srv.file_hasher import FileHasher
from enclavekit_ra_web_srv.handlers import Handlers
from enclavekit_ra_web_srv.jobs import Jobs
from enclavekit_ra_web_srv.known_files import KnownFiles
from enclavekit_ra_web_srv.nsm_worker import NsmWorker
from enclavekit_ra_web_srv.paths import parse_roots

KEEPALIVE_S = 30.0
SHUTDOWN_S = 5.0  # for requests under way; enclave_init allows 10 s by default

log = get_logger("ra-web-srv")


async def serve(config: Config, *, print_address: bool = False) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises: ConfigError, TransportError if the address is taken, DeviceError without an NSM.
    """
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    address = parse_address(config.listen, "tcp")
    if isinstance(address, VsockAddress):
        raise ConfigError(
            f"address {config.listen!r}", "", "put pf-proxy before it: the server takes tcp:// and unix://"
        )
    roots = parse_roots(config.roots)
    credentials = load_credentials(config.credentials) if config.bus else None
    async with contextlib.AsyncExitStack() as stack:
        nsm = NsmWorker(config.nsm)
        stack.callback(nsm.close)
        identity = TlsIdentity.generate(SERVICE_RA)
        hasher = FileHasher()
        stack.callback(hasher.close)
        evidence = Evidence(nsm, identity)
        ahead = AttestAhead(roots, hasher, evidence)
        known = KnownFiles(ahead.note)
        jobs = Jobs(hasher, known)
        stack.push_async_callback(jobs.close)
        bus = Bus(config.nats_url, SERVICE_RA, credentials) if config.bus else None
        handlers = Handlers(roots, hasher, known, jobs, nsm, evidence, identity.spki_sha256, bus, ahead)

        listener = stack.enter_context(Listener(address))
        runner = web.AppRunner(
            handlers.application(), access_log=None, keepalive_timeout=KEEPALIVE_S, shutdown_timeout=SHUTDOWN_S
        )
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        listener.socket.setblocking(False)
        tls = server_context(identity.certificate_pem, identity.key_pem)
        await web.SockSite(runner, listener.socket, ssl_context=tls).start()
        log.info("serving", address=str(listener.bound_address), tls_spki_sha256=identity.spki_sha256.hex())
        if print_address:
            print(listener.bound_address, flush=True)

        following: list[asyncio.Future[None]] = []
        if bus is not None:
            parts = (known.follow_bus(bus, config.hash_bucket_name), ahead.run())
            following = [asyncio.ensure_future(part) for part in parts]
            stack.push_async_callback(_end_following, following, bus)
        stopping = asyncio.ensure_future(stop.wait())
        ends: list[asyncio.Future[Any]] = [stopping, *following]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        for part in following:
            if part.done():
                part.result()  # they end by an error only
    log.info("stopped")


async def _end_following(following: list[asyncio.Future[None]], bus: Bus) -> None:
    await end_tasks(following)
    await bus.close()
