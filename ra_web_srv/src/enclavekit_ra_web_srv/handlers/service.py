# SPDX-License-Identifier: Apache-2.0
"""Routes about the server itself: whether it lives, what it counts, what it can do."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from urllib.parse import parse_qsl

from enclavekit_core.bus_connection import Bus
from enclavekit_core.errors import EnclavekitError, InputError

from enclavekit_ra_web_srv import answers as m
from enclavekit_ra_web_srv import asked
from enclavekit_ra_web_srv.attest_ahead import AttestAhead
from enclavekit_ra_web_srv.evidence import Evidence
from enclavekit_ra_web_srv.known_files import KnownFiles
from enclavekit_ra_web_srv.manifest_keeper import ManifestKeeper
from enclavekit_ra_web_srv.metrics import Metric, render_metrics
from enclavekit_ra_web_srv.page import Facts, render_page
from enclavekit_ra_web_srv.requests import MAX_QUERY_FIELDS
from enclavekit_ra_web_srv.routes import HTML, OF_NSM, TEXT, Answer, Ask, Route
from enclavekit_ra_web_srv.vrf_key import VrfKey

HELLO = b"<!doctype html><title>ra-web-srv</title><h1>Hello from the enclave</h1>\n"
PROMETHEUS = f"{TEXT}; version=0.0.4"


class ServiceRoutes:
    def __init__(
        self,
        evidence: Evidence,
        vrf: VrfKey,
        spki_sha256: bytes,
        keeper: ManifestKeeper,
        known: KnownFiles,
        ahead: AttestAhead,
        bus: Bus | None,
        collect: Callable[[], Iterable[Metric]],
    ) -> None:
        self._evidence, self._vrf, self._spki_sha256, self._keeper = evidence, vrf, spki_sha256, keeper
        self._known, self._ahead, self._bus, self._collect = known, ahead, bus, collect
        self.openapi: bytes = b"{}"
        """Set once all routes are known."""

    def routes(self) -> list[Route]:
        return [
            Route("GET", "/", self.page, {200: None, **OF_NSM}, content_types=(HTML,), hidden=True),
            Route("GET", "/health", self.health, {200: m.Health}, urgent=True),
            Route("GET", "/metrics", self.metrics, {200: None}, content_types=(TEXT,)),
            Route("GET", "/openapi.json", self.document, {200: None}, hidden=True),
            Route("GET", "/echo", self.echo, {200: m.Echo, 400: m.Error}),
            Route("GET", "/hello", self.hello, {200: None}, content_types=(HTML,)),
        ]

    @property
    def bus_state(self) -> str:
        return "off" if self._bus is None else "connected" if self._bus.is_connected else "disconnected"

    async def health(self, ask: Ask[asked.Nothing, None]) -> m.Health:
        """Whether the server answers; asks neither device nor bus."""
        return m.Health("ok", self.bus_state, self._known.on_bus, self._ahead.attested, self._ahead.waiting)

    async def ready(self) -> Answer:
        """Whether evidence can be had: the NSM answers, the bus is there, the first manifest is made."""
        try:
            await self._evidence.fresh()
            nsm = "ok"
        except EnclavekitError as exc:
            nsm = str(exc)
        manifest = "ok" if self._keeper.root is not None else str(self._keeper.error or "being made")
        ready = nsm == manifest == "ok" and self.bus_state != "disconnected"
        fields = m.ServiceReady("ready" if ready else "not ready", nsm, self.bus_state, manifest)
        return Answer(fields, 200 if ready else 503)

    async def metrics(self, ask: Ask[asked.Nothing, None]) -> Answer:
        """What is counted, for Prometheus."""
        return Answer(render_metrics(self._collect()).encode(), content_type=PROMETHEUS)

    async def document(self, ask: Ask[asked.Nothing, None]) -> Answer:
        """This interface as an OpenAPI document."""
        return Answer(self.openapi)

    async def echo(self, ask: Ask[asked.Nothing, None]) -> m.Echo:
        """The query as it arrived."""
        try:
            pairs = parse_qsl(
                ask.raw_query, keep_blank_values=True, errors="surrogateescape", max_num_fields=MAX_QUERY_FIELDS
            )
        except ValueError as exc:
            raise InputError("read", "query", f"it has more than {MAX_QUERY_FIELDS} fields") from exc
        parameters = [f"Query Parameter: {name}; Value: {value};" for name, value in pairs]
        return m.Echo(parameters, dict(pairs).get("path", "./"))

    async def hello(self, ask: Ask[asked.Nothing, None]) -> Answer:
        """A greeting."""
        return Answer(HELLO, content_type=HTML)

    async def page(self, ask: Ask[asked.Nothing, None]) -> Answer:
        """For people: what is attested here, and how to check it."""
        document = await self._evidence.fresh(ask.client)
        root = self._keeper.root
        facts = Facts(
            module_id=document.module_id,
            pcrs=document.pcrs,
            debug=document.is_debug,
            tls_spki_sha256=self._spki_sha256,
            vrf_suite=self._vrf.suite.name,
            vrf_public_key=self._vrf.public_key,
            manifest_root=root,
            files=None if root is None else len(self._keeper.get(root).files),
        )
        return Answer(render_page(facts).encode(), content_type=HTML)
