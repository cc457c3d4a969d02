# SPDX-License-Identifier: Apache-2.0
"""Puts the parts together: listens first, then follows the bus, and stops in order."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import signal
import ssl
from collections.abc import Hashable, Iterator, Sequence
from typing import Any

from aiohttp import web
from enclavekit_attestation.binding import TlsIdentity
from enclavekit_core.address import Address, VsockAddress, parse_address
from enclavekit_core.aio import end_tasks
from enclavekit_core.bus import SERVICE_RA
from enclavekit_core.bus_connection import Bus, load_credentials
from enclavekit_core.errors import ConfigError, EnclavekitError
from enclavekit_core.logs import get_logger
from enclavekit_core.streams import Listener

from enclavekit_ra_web_srv.attest_ahead import AttestAhead
from enclavekit_ra_web_srv.config import Config
from enclavekit_ra_web_srv.evidence import Evidence
from enclavekit_ra_web_srv.file_hasher import FileHasher
from enclavekit_ra_web_srv.handlers.checks import CheckRoutes
from enclavekit_ra_web_srv.handlers.evidence import EvidenceRoutes
from enclavekit_ra_web_srv.handlers.files import FileRoutes
from enclavekit_ra_web_srv.handlers.manifests import ManifestRoutes
from enclavekit_ra_web_srv.handlers.service import ServiceRoutes
from enclavekit_ra_web_srv.http_shell import HttpShell, encode_json
from enclavekit_ra_web_srv.jobs import Jobs
from enclavekit_ra_web_srv.known_files import KnownFiles
from enclavekit_ra_web_srv.manifest_keeper import ManifestKeeper
from enclavekit_ra_web_srv.metrics import HttpCounters, Metric
from enclavekit_ra_web_srv.networks import parse_networks
from enclavekit_ra_web_srv.nsm_worker import NsmWorker
from enclavekit_ra_web_srv.openapi import openapi_document
from enclavekit_ra_web_srv.paths import parse_roots
from enclavekit_ra_web_srv.proxied_clients import ProxiedClients
from enclavekit_ra_web_srv.record_check import RecordCheck
from enclavekit_ra_web_srv.record_store import RecordStore
from enclavekit_ra_web_srv.redirect import redirect_application
from enclavekit_ra_web_srv.tls_certificate import CertificateRenewal, make_context
from enclavekit_ra_web_srv.vrf_key import VrfKey

KEEPALIVE_S = 30.0  # also how long a connection may be silent, or take for the head of a request
SHUTDOWN_S = 5.0  # for requests under way; enclave_init allows 10 s by default
LINGER_S = 0.2  # after an answer to a body that we did not read: time for the client to see the answer
LEARN_EVERY_S = 60.0
BACKLOG = 1024  # connections that arrive at once wait here
MAX_LINE_BYTES = 64 * 1024  # of a request: a path of 4096 characters, each of four bytes and these escaped

log = get_logger("ra-web-srv")


class Service:
    """All parts of one running server."""

    def __init__(self, config: Config, stack: contextlib.AsyncExitStack) -> None:
        """Raises ConfigError, DeviceError without an NSM."""
        roots = parse_roots(config.roots)
        credentials = load_credentials(config.credentials) if config.bus else None
        dev_root = _read_dev_root(config.insecure_dev_root)
        self.vrf = VrfKey(config.vrf_cipher_suite)
        stack.callback(self.vrf.close)
        self.identity = TlsIdentity.generate(SERVICE_RA)
        self.tls = make_context(self.identity, config.client_ca)
        self.nsm = NsmWorker(config.nsm)
        stack.callback(self.nsm.close)
        self.hasher = FileHasher()
        stack.callback(self.hasher.close)
        self.bus = Bus(config.nats_url, SERVICE_RA, credentials) if config.bus else None
        self.records = RecordStore(self.bus)
        self.evidence = Evidence(self.nsm, self.identity, self.vrf, self.records)
        self.ahead = AttestAhead(roots, self.hasher, self.evidence, self.records)
        self.known = KnownFiles(self.ahead.note)
        self.jobs = Jobs(self.hasher, self.known)
        stack.push_async_callback(self.jobs.close)
        self.keeper = ManifestKeeper(roots, self.hasher)
        self.certificate = CertificateRenewal(self.identity, self.tls, self.evidence, lambda: self.keeper.root)
        self.counters = HttpCounters()
        checks = CheckRoutes(roots, self.hasher, self.evidence, self.vrf, dev_root)
        stack.callback(checks.close)
        spki = self.identity.spki_sha256
        service = ServiceRoutes(
            self.evidence, self.vrf, spki, self.keeper, self.known, self.ahead, self.bus, self.metrics
        )
        files = FileRoutes(
            roots,
            self.hasher,
            self.known,
            self.jobs,
            self.evidence,
            self.records,
            self.ahead,
            service.ready,
        )
        self.routes = [
            *service.routes(),
            *EvidenceRoutes(self.nsm, self.evidence, self.vrf, spki, lambda: self.keeper.root).routes(),
            *files.routes(),
            *ManifestRoutes(roots, self.keeper, self.evidence).routes(),
            *checks.routes(),
        ]
        service.openapi = encode_json(openapi_document(self.routes))
        self.proxied: dict[object, Hashable] = {}
        shell = HttpShell(
            self.routes, self.counters, client_certificates=config.client_ca is not None, proxied=self.proxied
        )
        self.application = shell.application()

    async def learn_own_evidence(self) -> None:
        """Ask the NSM what is in all of its documents, for comparison with records that are read back."""
        try:
            self.records.check = RecordCheck(await self.evidence.fresh())
        except EnclavekitError as exc:
            log.error("the NSM does not answer: records on the bus are of no use", cause=str(exc))

    async def follow_own_evidence(self) -> None:
        """Ask again and again, until cancelled: registers may be locked later, and an NSM may come to its senses."""
        while True:
            await asyncio.sleep(LEARN_EVERY_S)
            await self.learn_own_evidence()

    def metrics(self) -> Iterator[Metric]:
        """Yield what is counted now."""
        nsm, records = self.nsm.counters, self.records

        def one(name: str, kind: str, text: str, value: float) -> Metric:
            return Metric(name, kind, text, (("", value),))

        yield Metric(
            "answers_total",
            "counter",
            "Answers by status.",
            tuple((f'{{status="{status}"}}', count) for status, count in sorted(self.counters.answers.items())),
        )
        yield one("nsm_calls_total", "counter", "Requests that the NSM was given.", nsm.calls)
        yield one("nsm_errors_total", "counter", "Of these, those that failed.", nsm.errors)
        yield one("nsm_timeouts_total", "counter", "Callers who waited too long for the NSM.", nsm.timeouts)
        yield one("nsm_refused_total", "counter", "Requests refused because the queue was full.", nsm.refused)
        yield one("nsm_busy_seconds_total", "counter", "Time spent in the NSM.", nsm.busy_s)
        yield one("nsm_queued", "gauge", "Requests that wait for the NSM.", self.nsm.queued)
        yield one("jobs_running", "gauge", "Jobs of /generate.", self.jobs.running)
        yield one("files_on_bus", "gauge", "Files that fs-monitor has told of.", self.known.on_bus)
        yield one("attested_ahead_total", "counter", "Documents made before anybody asked.", self.ahead.attested)
        yield one("records_hot", "gauge", "Records in memory.", records.hot)
        yield one("records_written_total", "counter", "Records written to the bus.", records.written)
        yield one("records_read_back_total", "counter", "Records read back from the bus.", records.read_back)
        yield one("records_refused_total", "counter", "Records on the bus that were of no use.", records.refused)
        yield one("manifests_total", "counter", "Manifests made.", self.keeper.made)


async def serve(config: Config, *, print_address: bool = False) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises: ConfigError, TransportError if the address is taken, DeviceError without an NSM.
    """
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    config.check()
    address = _address(config.listen)
    _raise_file_limit()
    async with contextlib.AsyncExitStack() as stack:
        service = Service(config, stack)
        await service.certificate.begin()
        listener, runner = await _serve_on(stack, service.application, address, service.tls)
        proxied = _listen_for_proxies(stack, service, runner, config)
        if config.http_listen is not None:
            assert config.public_host is not None
            await _serve_on(stack, redirect_application(config.public_host), _address(config.http_listen), None)
        await service.learn_own_evidence()
        log.info("serving", address=str(listener.bound_address), tls_spki_sha256=service.identity.spki_sha256.hex())
        if print_address:
            print(listener.bound_address, flush=True)
            if proxied is not None:
                print(proxied.address, flush=True)

        parts = [
            service.keeper.run(),
            service.follow_own_evidence(),
            service.ahead.run(),
            service.ahead.refresh(),
            service.certificate.run(),
        ]
        if proxied is not None:
            parts.append(proxied.run())
        if service.bus is not None:
            parts += [service.known.follow_bus(service.bus, config.hash_bucket_name), service.records.run()]
        running = [asyncio.ensure_future(part) for part in parts]
        stack.push_async_callback(_end, running, service.bus)
        stopping = asyncio.ensure_future(stop.wait())
        ends: list[asyncio.Future[Any]] = [stopping, *running]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        for part in running:
            if part.done():
                part.result()  # they end by an error only
    log.info("stopped")


async def _serve_on(
    stack: contextlib.AsyncExitStack, application: web.Application, address: Address, tls: ssl.SSLContext | None
) -> tuple[Listener, web.AppRunner]:
    listener = _listen(stack, address)
    runner = await start_runner(application)
    stack.push_async_callback(runner.cleanup)
    await web.SockSite(runner, listener.socket, ssl_context=tls, backlog=BACKLOG).start()
    return listener, runner


def _listen_for_proxies(
    stack: contextlib.AsyncExitStack, service: Service, runner: web.AppRunner, config: Config
) -> ProxiedClients | None:
    if config.proxied_listen is None:
        return None
    assert runner.server is not None
    listener = _listen(stack, _address(config.proxied_listen))
    log.info("serving clients of proxies", address=str(listener.bound_address), proxies=list(config.proxied_from))
    networks = parse_networks(config.proxied_from)
    return ProxiedClients(listener, networks, service.tls, runner.server, service.proxied)


def _listen(stack: contextlib.AsyncExitStack, address: Address) -> Listener:
    listener = stack.enter_context(Listener(address, backlog=BACKLOG))
    listener.socket.setblocking(False)
    return listener


async def start_runner(application: web.Application) -> web.AppRunner:
    """Return a runner, ready for a site; who started it cleans it up."""
    runner = web.AppRunner(
        application,
        access_log=None,
        keepalive_timeout=KEEPALIVE_S,
        shutdown_timeout=SHUTDOWN_S,
        lingering_time=LINGER_S,
        max_line_size=MAX_LINE_BYTES,
    )
    await runner.setup()
    return runner


def _address(text: str) -> Address:
    address = parse_address(text, "tcp")
    if isinstance(address, VsockAddress):
        raise ConfigError(f"address {text!r}", "", "put pf-proxy before it: the server takes tcp:// and unix://")
    return address


def _read_dev_root(path: str | None) -> bytes | None:
    if path is None:
        return None
    from enclavekit_attestation.roots import read_insecure_dev_root

    log.warning("insecure: the /verify_* routes trust a development root instead of AWS's", file=path)
    return read_insecure_dev_root(path)


def _raise_file_limit() -> None:
    """Take as many descriptors as we may: each connection is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def _end(running: Sequence[asyncio.Future[None]], bus: Bus | None) -> None:
    await end_tasks(running)
    if bus is not None:
        await bus.close()
