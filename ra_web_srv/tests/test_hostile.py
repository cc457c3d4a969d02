# SPDX-License-Identifier: Apache-2.0
"""Clients that mean harm: what they do costs them an answer or their connection, and nobody else anything."""

import asyncio
import os
import socket
import ssl

import pytest
from aiohttp import web
from enclavekit_ra_web_srv import answers, asked, http_shell
from enclavekit_ra_web_srv.metrics import HttpCounters
from enclavekit_ra_web_srv.routes import Route
from enclavekit_ra_web_srv.server import start_runner

from .conftest import TIMEOUT_S, sha3

MAX_TAKEN_BYTES = 2**30  # some of it is on its way before the server has hung up
HEAD = "POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


def memory_mib(process):
    with open(f"/proc/{process.pid}/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS")) / 1024


def test_special_files_links_and_ways_out(server, data, tmp_path):
    """None of these is opened for long, followed or hashed."""
    os.mkfifo(data / "fifo")
    os.mknod(data / "zero", 0o666 | 0o020000, os.makedev(1, 5)) if os.geteuid() == 0 else None
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(data / "socket"))
        (data / "up").symlink_to("..")
        (data / "itself").symlink_to("itself")
        (data / "proc").symlink_to("/proc/self")
        (tmp_path / "secret").write_text("secret")
        for name in ("fifo", "zero", "socket", "itself", "up", "up/secret", "proc/environ", "proc/mem"):
            path = str(data / name)
            assert server.generate(path).status == 404, name
            for route in ("/hash", "/proof", "/doc", "/ready"):
                assert server.get(route, path=path).status == 404, name
            assert server.post("/verify_hash", {"file_path": path, "sha3_hash": "00" * 64}).status == 404, name
        for path in (
            "/dev/zero",
            "/proc/kcore",
            "/proc/kmsg",
            "/proc/self/environ",
            f"{data}/../secret",
            "/",
            "//etc//shadow",
        ):
            assert server.generate(path).status == 403, path
            assert server.post("/verify_hash", {"file_path": path, "sha3_hash": "00" * 64}).status == 403, path
    assert server.generate_and_wait(str(data))["state"] == "done"


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_huge_body_is_refused_and_not_kept(stateless_server, framing):
    server = stateless_server
    before = memory_mib(server.process)
    connection = server.connect()
    with connection.sock as tls:
        if framing == "length":
            tls.sendall(f"{HEAD}Content-Length: {2 * 2**30}\r\n\r\n".encode())
        else:
            tls.sendall(f"{HEAD}Transfer-Encoding: chunked\r\n\r\n".encode())
        sent, chunk = 0, b"x" * 65536
        try:
            while sent < MAX_TAKEN_BYTES:
                tls.sendall(chunk if framing == "length" else b"10000\r\n" + chunk + b"\r\n")
                sent += len(chunk)
        except OSError:
            pass  # it has hung up, as it should
        assert sent < MAX_TAKEN_BYTES, "the server has taken it all"
    assert memory_mib(server.process) < before + 32
    assert server.get("/health").status == 200


class Slow:
    """The real shell over plain TCP, with one route; what takes seconds there takes parts of one here."""

    def __init__(self, monkeypatch):
        monkeypatch.setattr(http_shell, "BODY_TIMEOUT_S", 0.1)
        monkeypatch.setattr("enclavekit_ra_web_srv.server.KEEPALIVE_S", 0.1)
        self.runner = None

    async def __aenter__(self):
        async def handle(ask):
            return answers.Error("reached")

        route = Route("POST", "/generate", handle, {}, body=asked.GenerateBody)
        shell = http_shell.HttpShell([route], HttpCounters(), client_certificates=False)
        self.runner = await start_runner(shell.application())
        listener = socket.create_server(("127.0.0.1", 0))
        listener.setblocking(False)
        await web.SockSite(self.runner, listener).start()
        self.port = listener.getsockname()[1]
        return self

    async def __aexit__(self, *_):
        await self.runner.cleanup()

    async def send(self, data):
        """Send, and return all that comes until the server hangs up."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(data)
        answer = await asyncio.wait_for(reader.read(), TIMEOUT_S)
        writer.close()
        return answer


@pytest.mark.parametrize(
    ("data", "answer"),
    [
        (b"", b""),
        (b"POST /gen", b""),
        (b"POST /generate HTTP/1.1\r\nHost: x\r\n", b""),
        (HEAD.encode() + b"Content-Length: 100\r\n\r\n{", b"HTTP/1.1 408"),
        (HEAD.encode() + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{", b"HTTP/1.1 408"),
        (HEAD.encode() + b'Content-Length: 13\r\n\r\n{"path":"/x"}', b"HTTP/1.1 200"),  # and then silence
    ],
)
async def test_slow_clients_are_hung_up_on(monkeypatch, data, answer):
    async with Slow(monkeypatch) as slow:
        assert (await slow.send(data)).startswith(answer)


def test_bytes_that_are_no_request_get_400_or_the_door(stateless_server):
    for junk in (
        b"\0" * 100,
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET / HTTP/1.1\r\nA" + b"a" * 100_000 + b": b\r\n\r\n",
        b"POST /generate HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx",
        b"POST /generate HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ):
        with stateless_server.connect().sock as tls:
            try:
                tls.sendall(junk)
                answer = tls.recv(20)
            except OSError:
                answer = b""
        assert answer == b"" or answer[:6] + answer[8:12] == b"HTTP/1 400", (junk[:40], answer)
    assert stateless_server.get("/health").status == 200


async def ask_many(port, targets, connections):
    """Ask for all of `targets` over so many connections at once; return the statuses and bodies in their order."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    answers = [None] * len(targets)
    waiting = iter(enumerate(targets))

    async def ask():
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
        for number, target in waiting:
            writer.write(f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            length = int(head.partition("content-length: ")[2].partition("\r\n")[0])
            answers[number] = int(head.split()[1]), await reader.readexactly(length)
        writer.close()

    await asyncio.gather(*(ask() for _ in range(connections)))
    return answers


@pytest.mark.parametrize(("requests", "connections"), [(2000, 100), pytest.param(10_000, 1000, marks=pytest.mark.long)])
def test_many_parallel_requests_get_right_answers_and_leave_nothing(server, data, requests, connections):
    contents = {f"{data}/{number}": str(number).encode() * number for number in range(50)}
    for path, content in contents.items():
        with open(path, "wb") as out:
            out.write(content)
    server.generate_and_wait(str(data))
    paths = list(contents)
    targets = [
        "/health" if number % 4 == 3 else f"/{('hash', 'proof', 'doc')[number % 4]}?path={paths[number % 50]}"
        for number in range(requests)
    ]
    asyncio.run(ask_many(server.port, targets[:1000], 50))
    before = memory_mib(server.process)
    answers = asyncio.run(ask_many(server.port, targets, connections))
    for number, (status, body) in enumerate(answers):
        assert status == 200, (targets[number], body)
        if number % 4 != 3:
            assert sha3(contents[paths[number % 50]]).encode() in body
    assert memory_mib(server.process) < before + connections  # buffers of TLS: below one MiB for each connection


def test_health_answers_while_everything_else_is_stuck(start_server, nsm, data):
    """The NSM hangs, large files are hashed, the queue is full: the server still answers, and says 503 or 429."""
    server = start_server("--no-bus", nsm_path=nsm.start("slow"))
    with open(data / "large", "wb") as out:
        out.truncate(2**30)
    server.generate(str(data / "large"))
    assert server.get("/ready", path=str(data / "large")).status == 202

    async def press():
        stuck = asyncio.ensure_future(ask_many(server.port, ["/attestation?nonce=00"] * 100, 100))
        answered = await ask_many(server.port, ["/health"] * 50, 1)
        assert [status for status, _ in answered] == [200] * 50
        return not stuck.done(), await stuck

    while_stuck, answers = asyncio.run(press())
    assert while_stuck, "the NSM was done before /health had answered"
    statuses = {status for status, _ in answers}
    assert statuses <= {200, 429, 503}
    assert 503 in statuses
    assert server.get("/health").status == 200
