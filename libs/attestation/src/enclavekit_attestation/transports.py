# SPDX-License-Identifier: Apache-2.0
"""aiohttp, httpx and requests over connections that the enclave has proven itself on; nothing else goes through them.

Each takes a context of `attested_ssl_context`. The library is imported when its transport is made; the context alone
works with these libraries, too, but then a redirect to http://, a proxy or an option of a request may go around it.
"""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Any

from enclavekit_core.errors import ConfigError

from enclavekit_attestation.attested_tls import AttestedContext, AttestedObject, AttestedSocket

if TYPE_CHECKING:
    import aiohttp
    import httpx
    import requests.adapters

NOT_HTTPS = "only https goes through an attested transport"
NOT_PROVEN = "the connection is none that the enclave has proven itself on"


def _checked(context: ssl.SSLContext) -> AttestedContext:
    if not isinstance(context, AttestedContext):
        raise ConfigError("this SSLContext", "", "it is none of attested_ssl_context")
    return context


def aiohttp_connector(context: ssl.SSLContext, **options: Any) -> aiohttp.TCPConnector:
    """Return a connector: `aiohttp.ClientSession(connector=aiohttp_connector(context))`; `options` are its own."""
    import aiohttp

    class AttestedConnector(aiohttp.TCPConnector):
        async def connect(self, req: Any, traces: Any, timeout: Any) -> Any:  # noqa: ASYNC109 - aiohttp names it
            if not req.is_ssl():
                raise aiohttp.ClientConnectionError(NOT_HTTPS)
            connection = await super().connect(req, traces, timeout)
            transport = connection.transport
            tls = None if transport is None else transport.get_extra_info("ssl_object")
            if not (isinstance(tls, AttestedObject) and tls.proven):
                connection.close()
                raise aiohttp.ClientConnectionError(NOT_PROVEN)
            return connection

    return AttestedConnector(ssl=_checked(context), **options)


def httpx_transport(context: ssl.SSLContext, **options: Any) -> httpx.HTTPTransport:
    """Return a transport: `httpx.Client(transport=httpx_transport(context))`; `options` are its own."""
    import httpx

    class AttestedTransport(httpx.HTTPTransport):
        def handle_request(self, request: httpx.Request) -> httpx.Response:
            if request.url.scheme != "https":
                raise httpx.UnsupportedProtocol(NOT_HTTPS, request=request)
            return super().handle_request(request)

    return AttestedTransport(verify=_checked(context), http2=False, **options)


def httpx_async_transport(context: ssl.SSLContext, **options: Any) -> httpx.AsyncHTTPTransport:
    """Return a transport: `httpx.AsyncClient(transport=httpx_async_transport(context))`; `options` are its own."""
    import httpx

    class AttestedAsyncTransport(httpx.AsyncHTTPTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            if request.url.scheme != "https":
                raise httpx.UnsupportedProtocol(NOT_HTTPS, request=request)
            return await super().handle_async_request(request)

    return AttestedAsyncTransport(verify=_checked(context), http2=False, **options)


def requests_adapter(context: ssl.SSLContext, **options: Any) -> requests.adapters.HTTPAdapter:
    """Return an adapter; mount it on "https://" and on "http://", which it refuses. `options` are its own."""
    import requests.adapters
    import requests.exceptions
    from urllib3.connection import HTTPSConnection
    from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

    checked = _checked(context)

    class AttestedConnection(HTTPSConnection):
        def connect(self) -> None:
            super().connect()
            if not (isinstance(self.sock, AttestedSocket) and self.sock.proven):
                self.close()
                raise ssl.SSLError(ssl.SSL_ERROR_SSL, NOT_PROVEN)
            self.is_verified = True  # else urllib3 warns: it knows of certificate authorities only

    class AttestedPool(HTTPSConnectionPool):
        ConnectionCls = AttestedConnection

    class AttestedAdapter(requests.adapters.HTTPAdapter):
        def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
            super().init_poolmanager(*args, **kwargs, ssl_context=checked)
            self.poolmanager.pool_classes_by_scheme = {"http": HTTPConnectionPool, "https": AttestedPool}

        def proxy_manager_for(self, proxy: str, **kwargs: Any) -> Any:
            manager = super().proxy_manager_for(proxy, **kwargs, ssl_context=checked)
            manager.pool_classes_by_scheme = {"http": HTTPConnectionPool, "https": AttestedPool}
            return manager

        def send(self, request: Any, *args: Any, **kwargs: Any) -> Any:
            if not str(request.url).lower().startswith("https://"):
                raise requests.exceptions.InvalidSchema(NOT_HTTPS, request=request)
            kwargs["verify"] = False  # by certificate authorities: the context verifies by evidence
            return super().send(request, *args, **kwargs)

    return AttestedAdapter(**options)
