# SPDX-License-Identifier: Apache-2.0
"""A real fs-monitor process on a real tree and a real NATS."""

import asyncio
import contextlib
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

import pytest
from enclavekit_core import bus_setup
from enclavekit_core.bus import BUCKET_HASHES, BUCKET_RECORDS, SERVICE_FS_MONITOR, path_of_key
from enclavekit_core.bus_connection import Bus, follow, load_credentials
from enclavekit_core.bus_setup import credentials_path
from enclavekit_core.errors import TransportError
from enclavekit_core.file_record import decode_record
from enclavekit_fs_monitor import control_client
from nats.errors import Error

TIMEOUT_S = 60.0
MAX_QUEUED_EVENTS = "/proc/sys/fs/inotify/max_queued_events"
LOCK = "enclavekit-test-event-queues.lock"


class Nats:
    def __init__(self, directory):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url, self.directory, self.process = f"nats://127.0.0.1:{port}", directory, None
        assert bus_setup.main(["--directory", directory, "--listen", f"tcp://127.0.0.1:{port}"]) == 0

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
        """Return the hashes as {path: hash} once `accept(hashes, records)` takes them; looks after each change."""
        bus = await self.connect()
        changes = asyncio.Queue()
        found = {BUCKET_HASHES: {}, BUCKET_RECORDS: {}}

        async def follow_bucket(name):
            try:
                async for entry in follow(await bus.bucket(name, create=True)):
                    changes.put_nowait((name, entry))
            except (Error, TimeoutError, OSError) as exc:
                changes.put_nowait((name, exc))

        tasks = [asyncio.ensure_future(follow_bucket(name)) for name in found]
        unlisted = len(tasks)
        try:
            while True:
                name, entry = await changes.get()
                if isinstance(entry, Exception):
                    raise entry
                if entry is None:
                    unlisted -= 1
                elif entry.value is None:
                    found[name].pop(path_of_key(entry.key), None)
                else:
                    value = decode_record(entry.value) if name == BUCKET_RECORDS else entry.value
                    found[name][path_of_key(entry.key)] = value
                if not unlisted and changes.empty() and accept(found[BUCKET_HASHES], found[BUCKET_RECORDS]):
                    return found[BUCKET_HASHES]
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await bus.close()

    def until(self, accept, describe):
        async def wait():
            while True:
                with contextlib.suppress(Error, TimeoutError, OSError):  # a cluster is choosing its leader
                    return await self.wait_for(accept)

        try:
            return asyncio.run(asyncio.wait_for(wait(), TIMEOUT_S))
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
    """A process with `roots`; more flags and environment as given, `within` a command that runs another."""

    def __init__(self, roots, nats, directory, name, *flags, within=(), **environment):
        self.roots, self.nats = roots, nats
        self.socket = f"unix://{directory}/{name}.sock"
        credentials = credentials_path(SERVICE_FS_MONITOR, nats.directory)
        argv = [*within, sys.executable, "-m", "enclavekit_fs_monitor", *(f"--directory={root}" for root in roots)]
        argv += ["--nats-url", nats.url, "--credentials", credentials, "--socket", self.socket, *flags]
        self.ignore = directory / "ignore"
        if not any(flag.startswith("--ignore-file") for flag in flags):
            argv += [f"--ignore-file={self.ignore}"]
        with open(directory / f"{name}.log", "w") as log:
            self.process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stderr=log, env={**os.environ, **environment}, cwd=directory
            )

    def agrees(self, expect=None):
        """Wait until the buckets hold hash and record of each file of the roots, and nothing else.

        `expect` says what they should hold, where not everything is hashed.
        """
        expect = expect or (lambda: {path: hash for root in self.roots for path, hash in hashes_of(root).items()})
        found = {}

        def accept(hashes, records):
            assert self.process.poll() is None
            found.update(hashes=hashes, records=records)
            return (
                hashes == expect()
                and records.keys() == hashes.keys()
                and all(
                    (record.digest, record.size_bytes, record.mtime_ns) == (hashes[path], *size_and_mtime(path))
                    for path, record in records.items()
                )
            )

        def describe():
            expected, hashes, records = expect(), found.get("hashes", {}), found.get("records", {})
            return (
                f"missing {expected.keys() - hashes.keys()}, left over {hashes.keys() - expected.keys()}, "
                f"wrong {[path for path in expected.keys() & hashes.keys() if expected[path] != hashes[path]]}, "
                f"records {records.keys() ^ hashes.keys()}"
            )

        return self.nats.until(accept, describe)

    def command(self, *words, expect=0):
        """Run `fs-monitor WORDS` against this process; return its output, JSON decoded."""
        argv = [sys.executable, "-m", "enclavekit_fs_monitor", *words, "--socket", self.socket]
        done = subprocess.run(argv, capture_output=True, timeout=TIMEOUT_S)
        assert done.returncode == expect, done.stderr
        return json.loads(done.stdout) if "--json" in words and expect == 0 else done.stdout or done.stderr

    def until_answers(self):
        """Return once it is asked and answers: by then it has everything that it needs from the kernel."""
        while True:
            assert self.process.poll() is None
            with contextlib.suppress(TransportError):
                return self.status()

    def status(self):
        return control_client.ask(self.socket, "/status")

    def until_status(self, accept):
        """Return the first status that `accept` takes; each look waits for the one before it to have been answered."""
        deadline_s = time.monotonic() + TIMEOUT_S
        while not accept(status := self.status()):
            assert time.monotonic() < deadline_s, status
        return status

    def stop(self, number=signal.SIGTERM):
        self.process.send_signal(number)
        return self.process.wait(TIMEOUT_S)


def size_and_mtime(path):
    try:
        info = os.lstat(path)
    except OSError:
        return None, None
    return info.st_size, info.st_mtime_ns


@pytest.fixture
def tree(tmp_path):
    directory = tmp_path / "tree"
    directory.mkdir()
    return directory


@pytest.fixture
def start_monitor(tree, nats, tmp_path):
    """Start one on `tree`, or on the roots that are given."""
    monitors = []

    def start(*flags, roots=None, **more):
        started = Monitor(roots or [tree], nats, tmp_path, f"monitor{len(monitors)}", *flags, **more)
        monitors.append(started)
        return started

    yield start
    for monitor in monitors:
        assert monitor.process.poll() is not None or monitor.stop() == 0


@pytest.fixture
def monitor(start_monitor, tree):
    """One that is ready."""
    (tree / "first").write_bytes(b"1")
    started = start_monitor()
    started.agrees()
    return started


# A process of its own, and of its own session: whatever becomes of the test, this one sees its standard input end and
# puts the setting back. What was there before stays in the lock file until then, should this one be killed as well.
SHORTEN = """
import fcntl, sys
_, setting, lock, limit = sys.argv
with open(lock, "a+") as lock, open(setting, "r+") as setting:
    fcntl.flock(lock, fcntl.LOCK_EX)
    lock.seek(0)
    before = lock.read() or setting.read()
    lock.seek(0), lock.truncate(), lock.write(before), lock.flush()
    def put(value):
        setting.seek(0), setting.write(value), setting.flush()
    try:
        put(limit)
        print("short", flush=True)
        sys.stdin.read()
    finally:
        put(before)
        lock.seek(0), lock.truncate()
"""


@contextlib.contextmanager
def short_event_queues(limit=16):
    """Inotify instances that are made meanwhile hold so many events; skips where that cannot be set.

    The limit is the machine's, so it is held for as long as one process needs to start, and by one test at a time.
    """
    if not os.access(MAX_QUEUED_EVENTS, os.W_OK):
        pytest.skip("cannot set fs.inotify.max_queued_events")
    argv = [sys.executable, "-c", SHORTEN, MAX_QUEUED_EVENTS, os.path.join(tempfile.gettempdir(), LOCK), f"{limit}\n"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True) as holder:
        assert holder.stdout.readline() == b"short\n"
        yield
