# SPDX-License-Identifier: Apache-2.0
"""Clients behind a proxy that says who they are, and everybody who may not say so."""

import asyncio
import contextlib
import http.client
import ipaddress
import socket
import ssl
import subprocess
import sys

import pytest
from aiohttp import web
from enclavekit_core import fabric
from enclavekit_core.address import TcpAddress
from enclavekit_core.errors import ConfigError
from enclavekit_core.proxy_protocol import HEAD, SIGNATURE, Proxied, encode_v1, encode_v2
from enclavekit_core.streams import Listener
from enclavekit_ra_web_srv import answers, http_shell, proxied_clients
from enclavekit_ra_web_srv.metrics import HttpCounters
from enclavekit_ra_web_srv.networks import client_of_host, is_in, parse_networks
from enclavekit_ra_web_srv.proxied_clients import ProxiedClients
from enclavekit_ra_web_srv.routes import Route
from enclavekit_ra_web_srv.server import start_runner

from .conftest import TIMEOUT_S

DESTINATION = TcpAddress("198.51.100.1", 8443)


def header(host, port=1234):
    return encode_v2(Proxied(TcpAddress(host, port), DESTINATION))


def client_context():
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


@contextlib.contextmanager
def connected(port, first=b""):
    """A connection on which TLS comes after `first`."""
    with socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S) as plain:
        plain.sendall(first)
        with client_context().wrap_socket(plain) as tls:
            connection = http.client.HTTPConnection("127.0.0.1", port)
            connection.sock = tls
            yield connection


def ask(connection, target="/health"):
    connection.request("GET", target)
    answer = connection.getresponse()
    return answer.status, answer.read()


@pytest.fixture
def both_ports(start_server):
    """Ports of a server: for anybody, and for proxies."""

    def start(*flags):
        server = start_server("--no-bus", "--proxied-listen", "tcp://127.0.0.1:0", *flags)
        line = server.process.stdout.readline()
        return server.port, int(line.rpartition(":")[2])

    return start


def test_header_in_front_of_tls(both_ports):
    plain, proxied = both_ports()
    for first in (header("203.0.113.7"), header("2001:db8::7"), encode_v2(Proxied())):
        with connected(proxied, first) as connection:
            assert [ask(connection)[0] for _ in range(3)] == [200] * 3
    with connected(plain) as connection:
        assert ask(connection)[0] == 200


@pytest.mark.parametrize(
    "first",
    [
        b"",
        b"GET / HTTP/1.1\r\n\r\n",
        encode_v1(Proxied(TcpAddress("203.0.113.7", 1), DESTINATION)),
        HEAD.pack(SIGNATURE, 0x21, 0x11, 4) + b"\0" * 4,
        HEAD.pack(SIGNATURE, 0x31, 0x11, 12) + b"\0" * 12,
        HEAD.pack(SIGNATURE, 0x21, 0x11, 60_000),
    ],
    ids=["none", "no header", "version 1", "too small", "version 3", "too long"],
)
def test_without_a_right_header_nothing_is_answered(both_ports, first):
    _, proxied = both_ports()
    with pytest.raises((OSError, ssl.SSLError)), connected(proxied, first) as connection:
        ask(connection)
    with connected(proxied, header("203.0.113.7")) as connection:
        assert ask(connection)[0] == 200


def test_header_on_the_other_listener_is_no_tls(both_ports):
    plain, _ = both_ports()
    with pytest.raises((OSError, ssl.SSLError)), connected(plain, header("203.0.113.7")) as connection:
        ask(connection)


def test_addresses_that_are_no_proxys_are_refused(both_ports):
    _, proxied = both_ports("--proxied-from", "192.0.2.1", "2001:db8::/32")
    with pytest.raises((OSError, ssl.SSLError)), connected(proxied, header("203.0.113.7")) as connection:
        ask(connection)


class Shell:
    """The real shell and the real listener for proxies, with one route, which waits until it is told."""

    async def __aenter__(self):
        self.clients, self.go = [], asyncio.Event()

        async def handle(asked):
            self.clients.append(asked.client)
            await self.go.wait()
            return answers.Error("reached")

        proxied = {}
        route = Route("GET", "/hash", handle, {}, about_files=True)
        shell = http_shell.HttpShell([route], HttpCounters(), client_certificates=False, proxied=proxied)
        self.runner = await start_runner(shell.application())
        self.listener = Listener(TcpAddress("127.0.0.1", 0))
        self.listener.socket.setblocking(False)
        self.site = web.TCPSite(self.runner, "127.0.0.1", 0)
        await self.site.start()
        networks = parse_networks(["127.0.0.1"])
        # no TLS: what comes after the header is the same for it
        self.proxies = ProxiedClients(self.listener, networks, None, self.runner.server, proxied)
        self.task = asyncio.ensure_future(self.proxies.run())
        self.proxied = proxied
        return self

    async def __aexit__(self, *_):
        self.go.set()
        self.task.cancel()
        await asyncio.wait([self.task])
        await self.runner.cleanup()
        self.listener.close()

    async def ask(self, host):
        """Ask over a connection of its own, and return the status."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.listener.bound_address.port)
        writer.write(header(host) + b"GET /hash HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        answer = await asyncio.wait_for(reader.read(), TIMEOUT_S)
        writer.close()
        return int(answer.split()[1])


async def test_limits_count_real_clients(monkeypatch):
    """One client with many connections meets its limit; the others do not."""
    monkeypatch.setattr(http_shell, "MAX_OF_CLIENT", 3)
    monkeypatch.setattr(proxied_clients, "TLS_TIMEOUT_S", None)
    async with asyncio.timeout(TIMEOUT_S), Shell() as shell:
        waiting = [asyncio.ensure_future(shell.ask("203.0.113.7")) for _ in range(3)]
        while len(shell.clients) < 3:
            await asyncio.sleep(0)
        assert await shell.ask("203.0.113.7") == 429
        waiting.append(asyncio.ensure_future(shell.ask("203.0.113.8")))
        waiting.append(asyncio.ensure_future(shell.ask("2001:db8::1")))
        while len(shell.clients) < 5:
            await asyncio.sleep(0)
        assert len(shell.proxied) >= 5
        shell.go.set()
        assert await asyncio.gather(*waiting) == [200] * 5
        assert set(shell.clients) == {
            ipaddress.ip_address("203.0.113.7"),
            ipaddress.ip_address("203.0.113.8"),
            ipaddress.ip_network("2001:db8::/64"),
        }
        while shell.proxied:  # nothing is kept of connections that have ended
            await asyncio.sleep(0)


async def test_silent_proxies_are_hung_up_on(monkeypatch):
    monkeypatch.setattr(proxied_clients, "TLS_TIMEOUT_S", None)
    monkeypatch.setattr(proxied_clients, "HEADER_TIMEOUT_S", 0.05)
    async with Shell() as shell:
        for first in (b"", header("203.0.113.7")[:20]):
            reader, writer = await asyncio.open_connection("127.0.0.1", shell.listener.bound_address.port)
            writer.write(first)
            assert await asyncio.wait_for(reader.read(), TIMEOUT_S) == b""
            writer.close()


async def test_waiting_headers_are_bounded_and_all_are_served(monkeypatch):
    monkeypatch.setattr(proxied_clients, "MAX_OPENING", 2)
    monkeypatch.setattr(proxied_clients, "HEADER_TIMEOUT_S", 0.05)
    monkeypatch.setattr(proxied_clients, "TLS_TIMEOUT_S", None)
    async with Shell() as shell:
        shell.go.set()
        silent = [await asyncio.open_connection("127.0.0.1", shell.listener.bound_address.port) for _ in range(6)]
        assert await asyncio.gather(*(shell.ask(f"203.0.113.{number}") for number in range(20))) == [200] * 20
        for _, writer in silent:
            writer.close()


def test_a_real_proxys_header(both_ports, tmp_path, monkeypatch):
    """pf-proxy's own, sent over vsock as a host does, and passed on in the enclave like any other bytes."""
    pytest.importorskip("enclavekit_pf_proxy")
    _, proxied = both_ports()
    monkeypatch.setenv(fabric.RUNTIME_DIR_VARIABLE, str(tmp_path / "rt"))
    fabric.ensure_runtime_dir()
    with contextlib.ExitStack() as stack:

        def proxy(*flags):
            program = "import sys; from enclavekit_pf_proxy.cli import main; sys.exit(main(sys.argv[1:]))"
            argv = [sys.executable, "-c", program, *flags, "--print-address"]
            process = stack.enter_context(subprocess.Popen(argv, stdout=subprocess.PIPE, text=True))
            stack.callback(process.terminate)
            return process.stdout.readline().strip()

        proxy("vsock-to-ip", "-v", "3:7000", "-i", f"127.0.0.1:{proxied}")
        address = proxy("ip-to-vsock", "-i", "127.0.0.1:0", "-v", "3:7000", "--send-proxy", "v2")
        with connected(int(address.rpartition(":")[2])) as connection:
            assert [ask(connection)[0] for _ in range(3)] == [200] * 3


@pytest.mark.parametrize(
    ("host", "client"),
    [
        ("203.0.113.7", "203.0.113.7"),
        ("::ffff:203.0.113.7", "203.0.113.7"),
        ("2001:db8:0:1:2::3", "2001:db8:0:1::/64"),
    ],
)
def test_what_counts_as_one_client(host, client):
    assert str(client_of_host(host)) == client


def test_networks():
    networks = parse_networks(["127.0.0.0/8", "::1"])
    assert [is_in(host, networks) for host in ("127.0.0.9", "::1", "::ffff:127.0.0.1", "128.0.0.1", "::2")] == [
        *(True, True, True),
        *(False, False),
    ]
    for bad in ("x", "127.0.0.1/8", "1.2.3.4/33", ""):
        with pytest.raises(ConfigError):
            parse_networks([bad])
