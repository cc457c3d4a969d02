# SPDX-License-Identifier: Apache-2.0
"""A real fs-monitor process on a real tree and a real NATS."""

import asyncio
import hashlib
import os
import shutil
import signal
import socket
import subprocess
import sys

import pytest
from enclavekit_core.bus import BUCKET_HASHES, SERVICE_FS_MONITOR, path_of_key
from enclavekit_core.bus_connection import Bus, list_entries, load_credentials
from enclavekit_core.bus_setup import credentials_path

TIMEOUT_S = 30.0


class Nats:
    def __init__(self, directory):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url, self.directory, self.process = f"nats://127.0.0.1:{port}", directory, None
        flags = ["--directory", directory, "--listen", f"tcp://127.0.0.1:{port}"]
        subprocess.run([sys.executable, "-m", "enclavekit_core.bus_setup", *flags], check=True)

    def start(self):
        argv = ["nats-server", "-c", f"{self.directory}/nats.conf"]
        self.process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def stop(self, *, lose_store=False):
        self.process.terminate()
        self.process.wait()
        self.process = None
        if lose_store:
            shutil.rmtree(f"{self.directory}/store")

    async def connect(self):
        bus = Bus(self.url, SERVICE_FS_MONITOR, load_credentials(credentials_path(SERVICE_FS_MONITOR, self.directory)))
        await asyncio.wait_for(bus.connect(), TIMEOUT_S)
        return bus

    def put(self, key, value):
        async def put():
            bus = await self.connect()
            await (await bus.bucket(BUCKET_HASHES, create=True)).put(key, value)
            await bus.close()

        asyncio.run(put())

    async def wait_for(self, accept):
        """Return the bucket as {path: hash} once `accept` takes it."""
        bus = await self.connect()
        try:
            bucket = await bus.bucket(BUCKET_HASHES, create=True)
            while True:
                found = {path_of_key(key): value for key, value in (await list_entries(bucket)).items()}
                if accept(found):
                    return found
        finally:
            await bus.close()

    def until(self, accept, describe):
        try:
            return asyncio.run(asyncio.wait_for(self.wait_for(accept), TIMEOUT_S))
        except TimeoutError:
            raise AssertionError(describe()) from None


def hashes_of(tree):
    """What the bucket should hold: every regular file below `tree`, no link followed."""
    expected = {}
    for directory, _, names in os.walk(os.fsencode(tree)):
        for name in names:
            path = os.path.join(directory, name)
            if os.path.isfile(path) and not os.path.islink(path):
                with open(path, "rb") as source:
                    expected[path] = hashlib.sha3_512(source.read()).digest()
    return expected


@pytest.fixture
def nats(tmp_path):
    if shutil.which("nats-server") is None:
        pytest.skip("nats-server is not installed")
    server = Nats(str(tmp_path / "nats"))
    server.start()
    yield server
    if server.process is not None:
        server.stop()


class Monitor:
    def __init__(self, tree, nats, log):
        self.tree, self.nats = tree, nats
        credentials = credentials_path(SERVICE_FS_MONITOR, nats.directory)
        flags = ["-d", str(tree), "--nats-url", nats.url, "--credentials", credentials]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "enclavekit_fs_monitor", *flags], stdin=subprocess.DEVNULL, stderr=log
        )

    def agrees(self):
        """Wait until the bucket holds the hash of each file of the tree, and nothing else."""
        assert self.process.poll() is None
        found = {}

        def accept(bucket):
            found.update(bucket=bucket)
            return bucket == hashes_of(self.tree)

        def describe():
            expected, bucket = hashes_of(self.tree), found.get("bucket", {})
            return (
                f"missing {expected.keys() - bucket.keys()}, left over {bucket.keys() - expected.keys()}, "
                f"wrong {[path for path in expected.keys() & bucket.keys() if expected[path] != bucket[path]]}"
            )

        return self.nats.until(accept, describe)

    def stop(self, number=signal.SIGTERM):
        self.process.send_signal(number)
        return self.process.wait(TIMEOUT_S)


@pytest.fixture
def tree(tmp_path):
    directory = tmp_path / "tree"
    directory.mkdir()
    return directory


@pytest.fixture
def start_monitor(tree, nats, tmp_path):
    monitors = []

    def start():
        with open(tmp_path / f"monitor{len(monitors)}.log", "w") as log:
            monitors.append(Monitor(tree, nats, log))
        return monitors[-1]

    yield start
    for monitor in monitors:
        assert monitor.process.poll() is not None or monitor.stop() == 0


@pytest.fixture
def monitor(start_monitor, tree):
    """One that has looked through the (empty) tree already."""
    (tree / "first").write_bytes(b"1")
    started = start_monitor()
    started.agrees()
    return started
