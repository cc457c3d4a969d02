# SPDX-License-Identifier: Apache-2.0
"""The server's configuration, proven on a real nats-server: who may do what."""

import asyncio
import contextlib
import os
import shutil
import socket
import stat
import subprocess
import sys

import pytest
import structlog
from enclavekit_core import bus_setup
from enclavekit_core.aio import end_tasks
from enclavekit_core.bus import BUCKET_HASHES, BUCKET_RECORDS, HASH_BYTES, SERVICE_FS_MONITOR, SERVICE_RA, key_of_path
from enclavekit_core.bus_connection import MAX_RETRY_S, Bus, follow, list_entries, load_credentials
from enclavekit_core.bus_setup import credentials_path

nats = pytest.importorskip("nats", reason="nats-py is not installed")
needs_server = pytest.mark.skipif(shutil.which("nats-server") is None, reason="nats-server is not installed")
LONG_PATH = b"/data/" + b"/".join([b"\xff" * 255] * 15)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def directory(tmp_path):
    return str(tmp_path / "nats")


@pytest.fixture
def server(directory):
    """A nats-server on the configuration of `bus_setup`; yields its URL."""
    port = free_port()
    flags = ["--directory", directory, "--listen", f"tcp://127.0.0.1:{port}"]
    subprocess.run([sys.executable, "-I", "-m", "enclavekit_core.bus_setup", *flags], check=True)
    with running("-c", f"{directory}/nats.conf"):
        yield f"nats://127.0.0.1:{port}"


@pytest.fixture
def open_server(tmp_path):
    """A nats-server without accounts, where all is allowed; yields its URL."""
    port = free_port()
    with running("-js", "-a", "127.0.0.1", "-p", str(port), "-sd", str(tmp_path)):
        yield f"nats://127.0.0.1:{port}"


@contextlib.contextmanager
def running(*flags):
    process = subprocess.Popen(["nats-server", *flags], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        process.wait()


async def connect(url, service, directory):
    bus = Bus(url, service, load_credentials(credentials_path(service, directory)))
    await asyncio.wait_for(bus.connect(), 20)
    return bus


def test_files_are_private_and_complete(directory):
    assert bus_setup.main(["--directory", directory, "--store", f"{directory}/jetstream"]) == 0
    names = {"nats.conf", "fs-monitor.yaml", "ra-web-srv.yaml"}
    assert set(os.listdir(directory)) == {*names, "jetstream"}
    for name in names:
        assert stat.S_IMODE(os.stat(os.path.join(directory, name)).st_mode) == 0o600
    credentials = [load_credentials(credentials_path(name, directory)) for name in (SERVICE_FS_MONITOR, SERVICE_RA)]
    assert credentials[0].password != credentials[1].password
    assert all(len(found.password) == 64 for found in credentials)


def test_second_run_keeps_passwords_and_rotate_makes_new_ones(directory):
    def password():
        return load_credentials(credentials_path(SERVICE_RA, directory)).password

    assert bus_setup.main(["--directory", directory]) == 0
    first = password()
    assert bus_setup.main(["--directory", directory, "--listen", "tcp://127.0.0.1:4333"]) == 0
    assert password() == first
    with open(f"{directory}/nats.conf") as source:
        text = source.read()
    assert "port: 4333" in text and first in text
    assert bus_setup.main(["--directory", directory, "--rotate"]) == 0
    assert password() != first


def test_damaged_credentials_are_replaced(directory):
    assert bus_setup.main(["--directory", directory]) == 0
    with open(credentials_path(SERVICE_RA, directory), "w") as out:
        out.write("user: ra-web-srv\npassword: \n")
    assert bus_setup.main(["--directory", directory]) == 0
    assert len(load_credentials(credentials_path(SERVICE_RA, directory)).password) == 64


@pytest.mark.parametrize(
    "flags", [["--listen", "unix:///x"], ["--listen", "tcp://127.0.0.1:0"], ["--max-store-bytes", "0"]]
)
def test_bad_flags_write_nothing(directory, flags, capsys):
    assert bus_setup.main(["--directory", directory, *flags]) == 2
    assert capsys.readouterr().err.startswith("bus-setup: cannot use ")
    assert not os.path.exists(directory)


def test_directory_that_cannot_be_made(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert bus_setup.main(["--directory", str(tmp_path / "file")]) == 2
    assert "cannot set up the bus in" in capsys.readouterr().err


@needs_server
async def test_monitor_writes_and_ra_reads_any_path(server, directory):
    writer, reader = [await connect(server, service, directory) for service in (SERVICE_FS_MONITOR, SERVICE_RA)]
    paths = [b"/data/a.txt", b"/data/my file", b"/data/x..y", LONG_PATH]
    bucket = await writer.bucket(BUCKET_HASHES, create=True)
    for path in paths:
        await bucket.put(key_of_path(path), bytes(HASH_BYTES))
    seen = await reader.bucket(BUCKET_HASHES, create=False)
    assert await list_entries(seen) == {key_of_path(path): bytes(HASH_BYTES) for path in paths}
    await bucket.delete(key_of_path(paths[0]))
    assert set(await list_entries(seen)) == {key_of_path(path) for path in paths[1:]}
    await writer.close()
    await reader.close()


@needs_server
async def test_follow_has_no_gap_between_list_and_changes(server, directory):
    writer, reader = [await connect(server, service, directory) for service in (SERVICE_FS_MONITOR, SERVICE_RA)]
    bucket = await writer.bucket(BUCKET_HASHES, create=True)
    total = 300

    async def write():
        for number in range(total):
            await bucket.put(f"/data/{number}", bytes(HASH_BYTES))

    writing = asyncio.ensure_future(write())
    keys, ends = set(), 0
    changes = follow(await reader.bucket(BUCKET_HASHES, create=False))
    async for entry in changes:
        if entry is None:
            ends += 1
        else:
            keys.add(entry.key)
        if len(keys) == total and ends:
            break
    await changes.aclose()
    await writing
    assert ends == 1
    await writer.close()
    await reader.close()


@needs_server
async def test_entries_carry_the_revision_of_their_change(server, directory):
    writer = await connect(server, SERVICE_FS_MONITOR, directory)
    bucket = await writer.bucket(BUCKET_HASHES, create=True)
    expected = [await bucket.put(f"/data/{number}", bytes(HASH_BYTES)) for number in range(3)]
    changes = follow(bucket)
    seen = [entry.revision async for entry in _until_listed(changes)]
    await changes.aclose()
    assert seen == expected == sorted(expected)
    await writer.close()


async def _until_listed(changes):
    async for entry in changes:
        if entry is None:
            return
        yield entry


@needs_server
async def test_a_listing_ends_while_its_messages_are_replaced(server, directory):
    writer, reader = [await connect(server, service, directory) for service in (SERVICE_FS_MONITOR, SERVICE_RA)]
    bucket = await writer.bucket(BUCKET_HASHES, create=True)
    seen = await reader.bucket(BUCKET_HASHES, create=False)
    key = key_of_path(b"/data/a.txt")
    for attempt in range(60):
        listing = asyncio.ensure_future(list_entries(seen))
        for _ in range(attempt % 7):
            await bucket.put(key, bytes(HASH_BYTES))
        assert (await asyncio.wait_for(listing, 20)).keys() <= {key}
    await writer.close()
    await reader.close()


@needs_server
async def test_a_listing_ends_when_its_newest_message_was_removed(open_server):
    bus = Bus(open_server, "anyone", None)
    await asyncio.wait_for(bus.connect(), 20)
    bucket = await bus.bucket("any", create=True)
    await bucket.put("kept", b"1")
    await bucket.put("removed", b"2")
    await bus._client.jetstream().purge_stream("KV_any", subject="$KV.any.removed")
    assert await asyncio.wait_for(list_entries(bucket), 20) == {"kept": b"1"}
    await bus.close()


@needs_server
async def test_a_bucket_with_fewer_copies_than_asked_for_is_told(open_server):
    bus = Bus(open_server, SERVICE_FS_MONITOR, None)
    await asyncio.wait_for(bus.connect(), 20)
    with structlog.testing.capture_logs() as told:
        await bus.bucket("any", create=True)
        await bus.bucket("any", create=True)
        assert told == []
        await (await bus.bucket("any", create=True, replicas=3)).put("a", b"1")
    await bus.close()
    assert [(line["log_level"], line["bucket"], line["asked"], line["has"]) for line in told] == [
        ("warning", "any", 3, 1)
    ]


@needs_server
async def test_ra_may_not_write_nor_touch_other_streams(server, directory):
    writer, reader = [await connect(server, service, directory) for service in (SERVICE_FS_MONITOR, SERVICE_RA)]
    await writer.bucket(BUCKET_HASHES, create=True)
    await (await writer.bucket(BUCKET_RECORDS, create=True)).put("/data/a", b"{}")
    assert await list_entries(await reader.bucket(BUCKET_RECORDS, create=False)) == {"/data/a": b"{}"}
    client = reader._client
    jetstream = client.jetstream(timeout=0.5)
    for attempt in (
        lambda: jetstream.publish("$KV.fs_hashes./data/evil", bytes(HASH_BYTES)),
        lambda: jetstream.publish("$KV.fs_records./data/evil", b"{}"),
        lambda: jetstream.purge_stream("KV_fs_records"),
        lambda: jetstream.delete_stream("KV_fs_hashes"),
        lambda: jetstream.purge_stream("KV_fs_hashes"),
        lambda: jetstream.add_stream(name="other", subjects=["other"]),
    ):
        with pytest.raises(Exception):  # noqa: B017 - which of its errors nats-py picks depends on the call
            await attempt()
    assert await list_entries(await writer.bucket(BUCKET_HASHES, create=False)) == {}
    await writer.close()
    await reader.close()


@needs_server
async def test_anonymous_and_wrong_password_are_refused(server, directory):
    await (await connect(server, SERVICE_RA, directory)).close()  # it is up
    for login in ({}, {"user": SERVICE_RA, "password": "0" * 64}):
        with pytest.raises(nats.errors.Error):
            await nats.connect(server, allow_reconnect=False, connect_timeout=5, **login)


async def test_bus_that_is_away_is_tried_ever_less_often():
    bus = Bus("nats://127.0.0.1:1", SERVICE_FS_MONITOR, None)
    failed, pauses = asyncio.Event(), []
    sleep = asyncio.sleep

    async def note_pause(delay_s, *result):
        pauses.append(delay_s)
        if delay_s >= MAX_RETRY_S:
            failed.set()
        await sleep(0, *result)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nats.aio.client.asyncio.sleep", note_pause)
        connecting = asyncio.ensure_future(bus.connect())
        await asyncio.wait_for(failed.wait(), 30)
        await end_tasks([connecting])
    tried = [pause for pause in pauses if pause]
    assert tried == sorted(tried)
    assert len(tried) < 20
    await bus.close()
