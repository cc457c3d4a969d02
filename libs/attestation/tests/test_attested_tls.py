# SPDX-License-Identifier: Apache-2.0
"""Clients that talk to an enclave only when it has proven itself: on real sockets, by every library."""

import asyncio
import datetime
import socket
import ssl
import urllib.request

import aiohttp
import httpx
import pytest
import requests
from enclavekit_attestation import Policy, TlsIdentity
from enclavekit_attestation.attested_tls import EvidenceError, attested_ssl_context, refusal_of
from enclavekit_attestation.transports import (
    aiohttp_connector,
    httpx_async_transport,
    httpx_transport,
    requests_adapter,
)
from enclavekit_core.errors import ConfigError, RemoteProtocolError, VerificationError

from .enclave_server import ConnectProxy, EnclaveServer

PCRS = {index: bytes([index + 1]) * 48 for index in range(16)}
GREETING = "hello from the enclave"
POLICY = Policy({0: PCRS[0]})


@pytest.fixture(scope="module")
def live_chain(make):
    now = datetime.datetime.now(datetime.UTC)
    life = {"not_before": now - datetime.timedelta(hours=1), "not_after": now + datetime.timedelta(hours=2)}
    return make.chain(**dict.fromkeys(("root", "regional", "zonal", "instance", "leaf"), life))


@pytest.fixture
def start(make, live_chain):
    servers = []

    def run(**options):
        servers.append(EnclaveServer(make, live_chain, PCRS, **options))
        return servers[-1]

    yield run
    for server in servers:
        server.close()


@pytest.fixture
def context_for(live_chain):
    def make_context(policy=POLICY, **options):
        return attested_ssl_context(policy, insecure_dev_root=live_chain.root, **options)

    return make_context


def by_urllib(url, context):
    with urllib.request.urlopen(url, context=context, timeout=30) as answer:
        return answer.read().decode()


def by_requests(url, context):
    with requests.Session() as session:
        for prefix in ("https://", "http://"):
            session.mount(prefix, requests_adapter(context))
        return session.get(url, timeout=30).text


def by_httpx(url, context):
    with httpx.Client(transport=httpx_transport(context), timeout=30, follow_redirects=True) as client:
        return client.get(url).text


def by_httpx_async(url, context):
    async def get():
        transport = httpx_async_transport(context)
        async with httpx.AsyncClient(transport=transport, timeout=30, follow_redirects=True) as client:
            return (await client.get(url)).text

    return asyncio.run(get())


def by_aiohttp(url, context):
    return asyncio.run(get_by_aiohttp(url, context))


async def get_by_aiohttp(url, context):
    async with (
        aiohttp.ClientSession(connector=aiohttp_connector(context)) as session,
        session.get(url, timeout=aiohttp.ClientTimeout(30)) as answer,
    ):
        return await answer.text()


def by_aiohttp_on_uvloop(url, context):
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(get_by_aiohttp(url, context))


TRANSPORTS = [by_requests, by_httpx, by_httpx_async, by_aiohttp, by_aiohttp_on_uvloop]
CLIENTS = [by_urllib, *TRANSPORTS]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("get", CLIENTS)
def test_proven_server_is_talked_to(get, start, context_for):
    server = start()
    assert get(f"{server.url}/hello", context_for()) == GREETING
    assert server.served == ["/hello"]
    assert len(server.requests) == 2


@pytest.mark.parametrize("get", CLIENTS)
@pytest.mark.parametrize("flaw", ["another enclave's document", "other code"])
def test_unproven_server_is_sent_nothing(get, flaw, start, context_for):
    """The relay: evidence of a real enclave over a TLS key of one's own."""
    server = start(bound_to=TlsIdentity.generate("enclave") if flaw.startswith("another") else None)
    policy = POLICY if flaw.startswith("another") else Policy({0: bytes(47) + b"\1"})
    with pytest.raises(Exception) as caught:
        get(f"{server.url}/secret", context_for(policy))
    cause = refusal_of(caught.value)
    assert isinstance(cause, VerificationError), caught.value
    assert cause.what == ("TLS binding" if flaw.startswith("another") else "PCRs")
    assert server.served == []


def changed(**fields):
    return lambda server: server.fields.update(fields)


def answering(*changes):
    """Return what makes the server answer so: a number is the status, bytes the body, a dict further headers."""

    def misbehave(status, headers, body):
        for change in changes:
            if isinstance(change, int):
                status = change
            elif isinstance(change, dict):
                headers = {**headers, **change}
            else:
                body = change(body)
        return status, headers, body

    return lambda server: setattr(server, "misbehave", misbehave)


REFUSALS = [
    (changed(nonce=b"another"), "nonce: it is not the one"),
    (changed(nonce=None), "nonce: the document has none"),
    (changed(pcrs={**PCRS, 0: bytes(48), 1: bytes(48), 2: bytes(48)}), "debug mode"),
    (changed(pcrs={**PCRS, 0: bytes([9]) * 48}), "PCR0 is"),
    (changed(timestamp=1_700_000_000_000), "s old, the limit is"),
    (changed(user_data=b"{}"), "no binding for purpose"),
    (changed(public_key=b"other"), "public_key of the document"),
    (lambda server: setattr(server, "service", "pipeline"), "made for service 'pipeline'"),
    (answering(lambda body: body[:-1] + bytes([body[-1] ^ 1])), "signature"),
    (answering(lambda body: b""), "attestation document"),
    (answering(503), "status 503"),
    (answering(100, {"Content-Length": None}, lambda body: b""), "not HTTP"),
    (answering({"Content-Type": "text/html"}), "the answer is text/html"),
    (answering({"Content-Length": None}), "does not state its length"),
    (answering({"Transfer-Encoding": "chunked", "Content-Length": None}), "does not state its length"),
    (answering({"Content-Length": "-1"}), "does not state its length"),
    (answering({"Content-Length": "99999999"}), "more than"),
    (answering({"Content-Length": "3"}), "more than was asked for"),
    (answering({"Connection": "close"}), "does not keep the connection"),
    (answering({"X-Long": "x" * 20_000}), r"headers|not HTTP"),
]


@pytest.mark.parametrize(("flaw", "reason"), REFUSALS, ids=[reason for _, reason in REFUSALS])
def test_each_flaw_of_the_evidence_is_refused_with_its_reason(flaw, reason, start, context_for):
    server = start()
    flaw(server)
    with (
        socket.create_connection(("127.0.0.1", server.port), timeout=30) as raw,
        pytest.raises(EvidenceError, match=reason) as caught,
    ):
        context_for().wrap_socket(raw, server_hostname="enclave")
    assert isinstance(caught.value.cause, VerificationError | RemoteProtocolError)


def test_replayed_evidence_is_refused(start, context_for):
    """A document that was good a moment ago, for another nonce."""
    server = start()
    recorded = server.document(bytes(32))
    answering(lambda body: recorded)(server)
    with pytest.raises(Exception) as caught:
        by_urllib(server.url, context_for())
    assert refusal_of(caught.value).what == "nonce"


@pytest.mark.parametrize("get", TRANSPORTS)
def test_redirect_to_http_is_not_followed(get, start, context_for):
    server = start()
    with pytest.raises(Exception, match="only https") as caught:
        get(f"{server.url}/redirect", context_for())
    assert refusal_of(caught.value) is None


def test_options_of_a_request_do_not_weaken_it(start, context_for, tmp_path):
    server = start(bound_to=TlsIdentity.generate("enclave"))
    with requests.Session() as session:
        session.mount("https://", requests_adapter(context_for()))
        for verify in (True, False, str(tmp_path)):
            with pytest.raises(requests.exceptions.SSLError):
                session.get(server.url, verify=verify, timeout=30)

    async def get():
        async with aiohttp.ClientSession(connector=aiohttp_connector(context_for())) as session:
            await session.get(server.url, ssl=False)

    with pytest.raises(aiohttp.ClientConnectionError, match="proven itself"):
        asyncio.run(get())
    assert server.served == []


def get_through(proxy, url, context, library):
    if library == "requests":
        with requests.Session() as session:
            session.mount("https://", requests_adapter(context))
            return session.get(url, proxies={"https": proxy.url}, timeout=30).text
    if library == "httpx":
        with httpx.Client(transport=httpx_transport(context, proxy=httpx.Proxy(proxy.url)), timeout=30) as client:
            return client.get(url).text

    async def get():
        async with (
            aiohttp.ClientSession(connector=aiohttp_connector(context)) as session,
            session.get(url, proxy=proxy.url) as answer,
        ):
            return await answer.text()

    return asyncio.run(get())


@pytest.mark.parametrize("library", ["requests", "httpx", "aiohttp"])
def test_proxy_in_between_weakens_nothing(start, context_for, library):
    proxy, good, relay = ConnectProxy(), start(), start(bound_to=TlsIdentity.generate("enclave"))
    try:
        assert get_through(proxy, good.url, context_for(), library) == GREETING
        with pytest.raises(Exception) as caught:
            get_through(proxy, relay.url, context_for(), library)
        assert refusal_of(caught.value).what == "TLS binding"
        assert relay.served == []
        assert len(proxy.targets) == 2
    finally:
        proxy.close()


def test_proven_key_is_not_asked_again_until_it_is_time(start, context_for):
    server = start()
    context = context_for()
    assert [by_urllib(f"{server.url}/{number}", context) for number in range(3)] == [GREETING] * 3
    assert len(server.requests) == 4
    every_time = context_for(recheck_s=0)
    assert [by_urllib(f"{server.url}/{number}", every_time) for number in range(2)] == [GREETING] * 2
    assert len(server.requests) == 8


def test_proof_of_one_key_is_none_of_another(start, context_for):
    context = context_for()
    good = start()
    assert by_urllib(good.url, context) == GREETING
    relay = start(bound_to=good.identity)
    with pytest.raises(Exception) as caught:
        by_urllib(relay.url, context)
    assert refusal_of(caught.value).what == "TLS binding"


def test_connection_cannot_be_used_before_the_proof(start, context_for):
    """OpenSSL would handshake by itself at the first read or write."""
    server = start()
    with (
        socket.create_connection(("127.0.0.1", server.port), timeout=30) as raw,
        context_for().wrap_socket(raw, server_hostname="enclave", do_handshake_on_connect=False) as tls,
    ):
        for use in (
            lambda: tls.send(b"x"),
            lambda: tls.sendall(b"x"),
            lambda: tls.write(b"x"),
            lambda: tls.recv(1),
            lambda: tls.recv_into(bytearray(1)),
            lambda: tls.read(1),
        ):
            with pytest.raises(ssl.SSLError, match="not proven"):
                use()
        tls.do_handshake()
        tls.sendall(b"GET / HTTP/1.1\r\nHost: enclave\r\n\r\n")
        assert tls.recv(8) == b"HTTP/1.1"
    memory = context_for().wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_hostname="enclave")
    for use in (lambda: memory.write(b"x"), lambda: memory.read(1)):
        with pytest.raises(ssl.SSLError, match="not proven"):
            use()


def test_refused_connection_stays_refused(start, context_for):
    server = start(bound_to=TlsIdentity.generate("enclave"))
    with (
        socket.create_connection(("127.0.0.1", server.port), timeout=30) as raw,
        context_for().wrap_socket(raw, server_hostname="enclave", do_handshake_on_connect=False) as tls,
    ):
        for _ in range(2):
            with pytest.raises(EvidenceError, match="another TLS key"):
                tls.do_handshake()
        with pytest.raises(ssl.SSLError, match="not proven"):
            tls.sendall(b"x")
    assert server.served == []


def test_policy_must_pin_the_image(context_for):
    for policy in (Policy(), Policy({1: PCRS[1]}), Policy({4: PCRS[4]})):
        with pytest.raises(ConfigError, match="pin the image"):
            context_for(policy)
    assert context_for(Policy(), insecure_any_code=True)


def test_transports_take_no_other_context():
    for make in (aiohttp_connector, httpx_transport, httpx_async_transport, requests_adapter):
        with pytest.raises(ConfigError, match="attested_ssl_context"):
            make(ssl.create_default_context())
