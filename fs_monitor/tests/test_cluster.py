# SPDX-License-Identifier: Apache-2.0
"""One cluster of NATS servers for several enclaves: replicas, servers that fail, a bucket for each."""

import asyncio
import shutil
import socket
import subprocess

import pytest
from enclavekit_core import bus_setup
from enclavekit_core.bus import SERVICE_FS_MONITOR
from enclavekit_core.bus_config import permissions
from enclavekit_core.bus_connection import Bus, load_credentials
from enclavekit_core.bus_setup import credentials_path

from .conftest import TIMEOUT_S, Nats, hashes_of

SERVERS = 3


def free_ports(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    try:
        return [sock.getsockname()[1] for sock in sockets]
    finally:
        for sock in sockets:
            sock.close()


class Cluster(Nats):
    """Three servers with the accounts of one enclave's bus; what an operator would write beside it."""

    def __init__(self, directory):
        self.directory = directory
        self.ports, routes = free_ports(SERVERS), free_ports(SERVERS)
        self.url = ",".join(f"nats://127.0.0.1:{port}" for port in self.ports)
        assert bus_setup.main(["--directory", directory, "--listen", f"tcp://127.0.0.1:{self.ports[0]}"]) == 0
        with open(f"{directory}/nats.conf") as source:
            text = source.read()
        # an enclave's bus knows its own two buckets only; a cluster has those of each enclave
        everything = '"publish": ["$JS.API.>", "$KV.>"'
        text = text.replace(f'"publish": ["{permissions(SERVICE_FS_MONITOR)["publish"][0]}"', everything)
        peers = ", ".join(f'"nats-route://127.0.0.1:{port}"' for port in routes)
        for number, (port, route) in enumerate(zip(self.ports, routes, strict=True)):
            own = text.replace('server_name: "enclave"', f'server_name: "s{number}"')
            own = own.replace(f"port: {self.ports[0]}", f"port: {port}").replace("/store", f"/store{number}")
            own += f'cluster {{ name: "c", listen: "127.0.0.1:{route}", routes: [{peers}] }}\n'
            with open(f"{directory}/{number}.conf", "w") as out:
                out.write(own)
        self.processes = [None] * SERVERS

    def start(self):
        for number in range(SERVERS):
            self.start_one(number)

    def start_one(self, number):
        argv = ["nats-server", "-c", f"{self.directory}/{number}.conf"]
        self.processes[number] = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def kill_one(self, number):
        self.processes[number].kill()
        self.processes[number].wait()

    def replicas_of(self, bucket):
        async def ask():
            credentials = load_credentials(credentials_path(SERVICE_FS_MONITOR, self.directory))
            bus = Bus(self.url, SERVICE_FS_MONITOR, credentials)
            await asyncio.wait_for(bus.connect(), TIMEOUT_S)
            status = await (await bus.bucket(bucket, create=False)).status()
            await bus.close()
            return status.stream_info.config.num_replicas

        return asyncio.run(ask())


@pytest.fixture
def cluster(tmp_path):
    if shutil.which("nats-server") is None:
        pytest.skip("nats-server is not installed")
    servers = Cluster(str(tmp_path / "nats"))
    servers.start()
    yield servers
    for number in range(SERVERS):
        servers.kill_one(number)


@pytest.fixture
def nats(cluster):
    """What the fixtures of the other tests are given in place of one server."""
    return cluster


@pytest.mark.long  # a cluster takes its time to choose a leader
def test_cluster_that_loses_servers_serves_two_enclaves(tmp_path, cluster, start_monitor):
    trees = [tmp_path / "one", tmp_path / "two"]
    for tree in trees:
        tree.mkdir()
        (tree / "f").write_bytes(str(tree).encode())
    buckets = ["--kv-bucket-name", "enclave2_hashes", "--records-bucket-name", "enclave2_records"]
    first = start_monitor("--replicas", "3", roots=[trees[0]])
    second = start_monitor("--replicas", "3", *buckets, roots=[trees[1]])
    for monitor in (first, second):
        monitor.command("status", "--wait")
    assert cluster.replicas_of("enclave2_hashes") == cluster.replicas_of("fs_hashes") == 3
    for number in range(SERVERS):  # one after the other, the one that they talk to among them
        cluster.kill_one(number)
        (trees[0] / f"while {number} was away").write_bytes(b"%d" % number)
        assert set(first.agrees()) == set(hashes_of(trees[0]))
        cluster.start_one(number)
    assert second.status()["files"]["closed"] == 1
