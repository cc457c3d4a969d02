# SPDX-License-Identifier: Apache-2.0
"""The thin shell around the routes: HTTP in, typed requests to the handler, typed answers and errors out.

aiohttp with its C parser does the protocol, on uvloop (`./dev bench ra` says how fast); it is asyncio's own, so the
framework needs no second runtime for it. Every answer is complete in memory and has its length.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from types import MappingProxyType

import msgspec
from aiohttp import web
from enclavekit_core.errors import DeviceError, EnclavekitError, InputError
from enclavekit_core.logs import get_logger

from enclavekit_ra_web_srv import requests
from enclavekit_ra_web_srv.fair_queue import ClientFullError, QueueFullError
from enclavekit_ra_web_srv.file_hasher import HasherBusyError, NoSuchFileError, UnstableFileError
from enclavekit_ra_web_srv.jobs import TooManyJobsError
from enclavekit_ra_web_srv.manifest_keeper import NoManifestError, UnknownManifestError
from enclavekit_ra_web_srv.metrics import HttpCounters
from enclavekit_ra_web_srv.networks import client_of_host, is_loopback
from enclavekit_ra_web_srv.nsm_worker import NsmTimeoutError
from enclavekit_ra_web_srv.paths import PathRefusedError
from enclavekit_ra_web_srv.routes import JSON, Answer, Ask, Route
from enclavekit_ra_web_srv.turnstile import Turnstile

MAX_BODY_BYTES = 64 * 1024  # the largest is a document in hex
BODY_TIMEOUT_S = 10.0  # for a body of that size
HANG_UP_S = 0.5  # time for the client to see the answer
MAX_UNDER_WAY = 2000  # requests that a handler works on; more are refused at once, and cost nothing
MAX_OF_CLIENT = 200
RETRY_AFTER_S = 1
STATUS_OF_ERROR: dict[type[Exception], int] = {
    PathRefusedError: 403,
    InputError: 400,
    NoSuchFileError: 404,
    UnknownManifestError: 404,
    UnstableFileError: 409,
    ClientFullError: 429,
    DeviceError: 503,
    HasherBusyError: 503,
    NoManifestError: 503,
    NsmTimeoutError: 503,
    QueueFullError: 503,
    TooManyJobsError: 503,
}
HEADERS = {
    "Server": "ra-web-srv",
    "Cache-Control": "no-store",  # evidence is about now
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
}
_encoder = msgspec.json.Encoder()
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
log = get_logger("ra-web-srv")


def encode_json(content: object) -> bytes:
    """Return JSON, indented as the Rust server's; path bytes that are no UTF-8 come as escaped surrogates."""
    try:
        return msgspec.json.format(_encoder.encode(content), indent=2) + b"\n"
    except UnicodeEncodeError:
        return json.dumps(msgspec.to_builtins(content), indent=2).encode("ascii") + b"\n"


def to_response(answer: Answer | msgspec.Struct) -> web.Response:
    if not isinstance(answer, Answer):
        answer = Answer(answer)
    body = answer.content if isinstance(answer.content, bytes) else encode_json(answer.content)
    kind = answer.content_type if answer.content_type == JSON else _with_charset(answer.content_type)
    headers = {**HEADERS, "Content-Type": kind}
    if answer.status in (202, 429, 503):
        headers["Retry-After"] = str(RETRY_AFTER_S)
    return web.Response(body=body, status=answer.status, headers=headers)


def _with_charset(content_type: str) -> str:
    return f"{content_type}; charset=utf-8" if content_type.startswith("text/") else content_type


def error_response(status: int, message: str) -> web.Response:
    return to_response(Answer({"error": message}, status))


class HttpShell:
    def __init__(
        self,
        routes: Sequence[Route],
        counters: HttpCounters,
        *,
        client_certificates: bool,
        proxied: Mapping[object, Hashable] = MappingProxyType({}),
    ) -> None:
        """Args:
        client_certificates: whether routes about files need one.
        proxied: protocol of a connection -> who is behind it, where a proxy said so.
        """
        self._routes, self._counters, self._client_certificates = routes, counters, client_certificates
        self._proxied = proxied
        self._turnstile = Turnstile()
        self._of_client: dict[Hashable, int] = {}
        self._under_way = 0

    def application(self) -> web.Application:
        app = web.Application(middlewares=[self._guard], client_max_size=MAX_BODY_BYTES)
        for route in self._routes:
            for spelling in {route.path, route.path.rstrip("/") + "/"}:
                app.router.add_route(route.method, spelling, self._handler_of(route))
        return app

    def _handler_of(self, route: Route) -> Handler:
        async def handle(request: web.Request) -> web.StreamResponse:
            client = client_of(request, self._proxied)
            if route.about_files and self._client_certificates and not has_certificate(request):
                return error_response(403, "cannot answer: this needs a client certificate")
            held = self._of_client.get(client, 0)
            if route.about_files and (self._under_way >= MAX_UNDER_WAY or held >= MAX_OF_CLIENT):
                status = 429 if held >= MAX_OF_CLIENT else 503
                return error_response(status, "cannot answer: too many requests are under way")
            self._of_client[client] = held + 1
            self._under_way += 1
            try:
                if not route.urgent:
                    await self._turnstile.enter()
                body = None if route.body is None else requests.parse_body(await _read_body(request), route.body)
                raw_query = request.rel_url.raw_query_string
                ask = Ask(
                    query=requests.parse_query(raw_query, route.query),
                    body=body,
                    client=client,
                    argument=next(iter(request.match_info.values()), ""),
                    accept=request.headers.get("Accept", ""),
                    raw_query=raw_query,
                )
                return to_response(await route.handler(ask))
            finally:
                self._under_way -= 1
                if self._of_client[client] == 1:
                    del self._of_client[client]
                else:
                    self._of_client[client] -= 1

        return handle

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Turn every failure into a status and `{"error": "cannot ..."}`, and count."""
        try:
            response = await handler(request)
        except PathRefusedError:
            response = error_response(403, "cannot use path: it is outside of what this server may read")
        except web.HTTPException as exc:
            response = error_response(exc.status, f"cannot serve {request.method} {request.path}: {exc.reason.lower()}")
            if isinstance(exc, web.HTTPMethodNotAllowed):
                response.headers["Allow"] = exc.headers["Allow"]
            if exc.status in (408, 413, 415):
                _hang_up(request, response)
        except EnclavekitError as exc:
            status = STATUS_OF_ERROR.get(type(exc), 500)
            if status >= 500:
                log.error("request failed", route=request.path, cause=str(exc))
            response = error_response(status, str(exc))
        except Exception:  # the outermost: a bug must cost one answer, and what it was stays in our log
            log.exception("request failed", route=request.path)
            response = error_response(500, "cannot answer: internal error")
        self._counters.count(response.status)
        return response


def _hang_up(request: web.Request, response: web.Response) -> None:
    """End the connection after the answer: what is left of the body is not worth reading."""
    response.force_close()
    if request.transport is not None:
        # closing in order waits for the peer to close as well, and reads what it sends until then
        asyncio.get_running_loop().call_later(HANG_UP_S, request.transport.abort)


async def _read_body(request: web.Request) -> bytes:
    if request.content_type != JSON:
        raise web.HTTPUnsupportedMediaType
    if (request.content_length or 0) > MAX_BODY_BYTES:
        raise web.HTTPRequestEntityTooLarge(MAX_BODY_BYTES, request.content_length or 0)
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            return await request.read()
    except TimeoutError:
        raise web.HTTPRequestTimeout from None


def client_of(request: web.Request, proxied: Mapping[object, Hashable]) -> Hashable:
    """Return who asks. From outside everybody comes through pf-proxy, hence from here: unless it says who they are,
    each connection is one."""
    transport = request.transport
    if transport is None:
        return None
    certificate = _certificate(request)
    if certificate is not None:
        return certificate
    behind = proxied.get(request.protocol)
    if behind is not None:
        return behind
    peer = transport.get_extra_info("peername")
    if not isinstance(peer, tuple):
        return id(transport)
    host = str(peer[0]).partition("%")[0]  # without the name of an interface
    return peer[:2] if is_loopback(host) else client_of_host(host)


def has_certificate(request: web.Request) -> bool:
    return _certificate(request) is not None


def _certificate(request: web.Request) -> str | None:
    """Return what identifies the certificate that the TLS layer has verified."""
    if request.transport is None:
        return None
    found = request.transport.get_extra_info("peercert")
    return f"{found.get('issuer')} {found['serialNumber']}" if found else None
