# SPDX-License-Identifier: Apache-2.0
"""A real server process, a real NATS, the emulator's NSM, and a client that speaks real TLS."""

import asyncio
import dataclasses
import hashlib
import http.client
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import urllib.parse

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from enclavekit_core.bus import BUCKET_HASHES, SERVICE_FS_MONITOR, key_of_path
from enclavekit_core.bus_connection import Bus, load_credentials
from enclavekit_core.bus_setup import credentials_path
from enclavekit_emulator.nsm_authority import ensure_dev_root
from enclavekit_emulator.nsm_server import serve_nsm
from enclavekit_emulator.nsm_service import NsmService

PCRS = {0: b"\x10" * 48, 1: b"\x11" * 48, 2: b"\x12" * 48}
MODULE_ID = "i-0123456789abcdef0-enc0123456789abcdef"
TIMEOUT_S = 30.0
POST_JSON = {"Content-Type": "application/json"}


@dataclasses.dataclass
class Nsm:
    path: str
    root_der: bytes
    start: object
    """Start a further NSM: start(faults) -> path."""


@pytest.fixture(scope="session")
def nsm(tmp_path_factory):
    directory = tmp_path_factory.mktemp("nsm")
    servers = []

    def start(*faults):
        path = str(directory / f"nsm{len(servers)}.sock")
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        listener.listen(16)
        servers.append(serve_nsm(listener, NsmService.for_enclave(PCRS, MODULE_ID, str(directory), faults)))
        return path

    path = start()
    root = ensure_dev_root(str(directory)).certificate.public_bytes(Encoding.DER)
    yield Nsm(path, root, start)
    for server in servers:
        server.close()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@dataclasses.dataclass
class Nats:
    url: str
    directory: str
    process: subprocess.Popen = None

    def start(self):
        self.process = subprocess.Popen(
            ["nats-server", "-c", f"{self.directory}/nats.conf"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def stop(self):
        self.process.terminate()
        self.process.wait()

    def change(self, **changes):
        """Do what fs-monitor does: put (bytes) or delete (None) hashes by path."""

        async def change():
            credentials = load_credentials(credentials_path(SERVICE_FS_MONITOR, self.directory))
            bus = Bus(self.url, SERVICE_FS_MONITOR, credentials)
            await asyncio.wait_for(bus.connect(), TIMEOUT_S)
            bucket = await bus.bucket(BUCKET_HASHES, create=True)
            for path, digest in changes["paths"].items():
                key = key_of_path(os.fsencode(path))
                await (bucket.delete(key) if digest is None else bucket.put(key, digest))
            await bus.close()

        asyncio.run(change())


@pytest.fixture
def nats(tmp_path):
    if shutil.which("nats-server") is None:
        pytest.skip("nats-server is not installed")
    port, directory = free_port(), str(tmp_path / "nats")
    flags = ["--directory", directory, "--listen", f"tcp://127.0.0.1:{port}"]
    subprocess.run([sys.executable, "-m", "enclavekit_core.bus_setup", *flags], check=True)
    server = Nats(f"nats://127.0.0.1:{port}", directory)
    server.start()
    yield server
    server.stop()


@dataclasses.dataclass
class Answer:
    status: int
    headers: http.client.HTTPMessage
    body: bytes
    certificate: bytes

    @property
    def json(self):
        assert self.headers["Content-Type"].startswith("application/json"), self.body
        return json.loads(self.body)


class Server:
    """A running ra-web-srv."""

    def __init__(self, flags, log):
        argv = [
            sys.executable,
            "-m",
            "enclavekit_ra_web_srv",
            "--print-address",
            "--listen",
            "tcp://127.0.0.1:0",
            *flags,
        ]
        self._take(subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=log, text=True))

    @classmethod
    def of_process(cls, process):
        """One that was started with --print-address and a pipe as its standard output."""
        server = cls.__new__(cls)
        server._take(process)
        return server

    def _take(self, process):
        self.process = process
        line = self.process.stdout.readline().strip()
        assert line, "the server has not started: see its log"
        self.port = int(line.rpartition(":")[2]) if line.startswith("tcp://") else None
        self.certificate = None
        """PEM file with the client's certificate and key."""

    def connect(self):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        if self.certificate is not None:
            context.load_cert_chain(self.certificate)
        connection = http.client.HTTPSConnection("127.0.0.1", self.port, context=context, timeout=TIMEOUT_S)
        connection.connect()
        return connection

    def request(self, method, target, body=None, headers=None):
        connection = self.connect()
        try:
            certificate = connection.sock.getpeercert(binary_form=True)
            connection.request(method, target, body, headers or {})
            response = connection.getresponse()
            return Answer(response.status, response.headers, response.read(), certificate)
        finally:
            connection.close()

    def get(self, route, headers=None, **query):
        encoded = urllib.parse.urlencode(query, errors="surrogateescape")
        return self.request("GET", f"{route}?{encoded}" if encoded else route, headers=headers)

    def post(self, route, fields):
        return self.request("POST", route, json.dumps(fields).encode(), POST_JSON)

    def generate(self, path):
        return self.post("/generate", {"path": path})

    def generate_and_wait(self, path):
        """Generate, and return the finished job."""
        identifier = self.generate(path).json["job"]
        return self.until(lambda: self.get(f"/jobs/{identifier}").json, lambda job: job["state"] != "running")

    def until(self, ask, accept):
        """Ask until the answer is accepted; each question is a round trip, so this is no busy loop."""
        for _ in range(3000):
            answer = ask()
            if accept(answer):
                return answer
        raise AssertionError(f"still {answer}")

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(TIMEOUT_S)
        self.process.stdout.close()
        return status


@pytest.fixture
def start_server(nsm, data, tmp_path):
    servers = []

    def start(*flags, nsm_path=nsm.path):
        log = open(tmp_path / f"server{len(servers)}.log", "w")  # noqa: SIM115 - closed after the server
        server = Server(["--nsm", nsm_path, "--roots", str(data), *flags], log)
        servers.append((server, log))
        return server

    yield start
    for server, log in servers:
        assert server.process.poll() is not None or server.stop() == 0
        log.close()


@pytest.fixture
def data(tmp_path):
    """The root of the files that the server may read."""
    directory = tmp_path / "data"
    directory.mkdir()
    return directory


@pytest.fixture
def server(start_server):
    return start_server("--no-bus")


@pytest.fixture(scope="session")
def stateless_server(nsm, tmp_path_factory):
    """For requests that leave nothing behind: one server for all of them."""
    directory = tmp_path_factory.mktemp("stateless")
    with open(directory / "server.log", "w") as log:
        server = Server(["--nsm", nsm.path, "--roots", str(directory), "--no-bus"], log)
        yield server
        assert server.stop() == 0


@pytest.fixture
def server_on_bus(start_server, nats):
    return start_server("--nats-url", nats.url, "--credentials", credentials_path("ra-web-srv", nats.directory))


def sha3(content):
    return hashlib.sha3_512(content).hexdigest()


@pytest.fixture(name="sha3")
def sha3_fixture():
    return sha3
