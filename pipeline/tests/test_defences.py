# SPDX-License-Identifier: Apache-2.0
"""Peers that mean harm: each is cut off, everybody else is served, and nothing of them stays behind."""

import asyncio
import contextlib
import os
import resource
import struct
import time
from pathlib import Path

import pytest
from enclavekit_attestation import ssl_keys
from enclavekit_core.errors import EnclavekitError, TransportError
from enclavekit_pipeline.channel.mux import Connection
from enclavekit_pipeline.enclave import forker
from enclavekit_pipeline.enclave.reception import MAX_STRANGERS
from enclavekit_pipeline.enclave.workplace import MAX_COPIES_OF_CLIENT
from enclavekit_pipeline.host.client import connect, receive, shake_hands
from enclavekit_pipeline.host.session import connected
from enclavekit_pipeline.wire.copy_messages import CopyOutRequest
from enclavekit_pipeline.wire.exec_messages import ExecRequest
from enclavekit_pipeline.wire.frames import HEADER, Frame, Kind, encode
from enclavekit_pipeline.wire.messages import encode_payload

from .conftest import grant, listening
from .test_refusals import stranger
from .test_session import outcome, shell

CROWD = 1000


@pytest.fixture
def served(inside, target_for):
    """A listener of its own, so that what it holds can be counted: (process, target)."""
    with listening(inside, [grant(inside, "alice", system=True)], cid=25) as process:
        yield process, target_for("alice", 25)


def descriptors(process):
    return len(os.listdir(f"/proc/{process.pid}/fd"))


def children(process):
    """Return the listener's commands: all of its children but the process that starts them."""
    with open(f"/proc/{process.pid}/task/{process.pid}/children") as source:
        return [child for child in source.read().split() if not is_forker(child)]


def is_forker(pid):
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as source:
            return os.fsencode(forker.__file__) in source.read().split(b"\0")
    except FileNotFoundError:  # ended meanwhile
        return False


async def until(condition, what):
    """Wait until something is so; how long it takes is not tested."""
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.02)


async def test_thousand_connections_keep_nobody_out_and_leave_nothing(served, inside):
    process, target = served
    async with connected(target) as session:
        assert await outcome(session, shell("exit 1")) == (1, b"")
    before = descriptors(process)
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(limit[1], 4096), limit[1]))
    try:
        with contextlib.ExitStack() as stack:
            for _ in range(CROWD):
                stack.enter_context(await asyncio.to_thread(stranger, inside, 25))
            await until(lambda: descriptors(process) <= before + MAX_STRANGERS, "more strangers than allowed")
            async with connected(target) as session:
                assert await outcome(session, shell("exit 2")) == (2, b"")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)
    await until(lambda: descriptors(process) <= before, "descriptors stay")


@pytest.mark.parametrize(
    "wire",
    [
        HEADER.pack(Kind.STDIN, 0, 1, 2**32 - 1),
        HEADER.pack(Kind.OPEN, 0, 5, 65537),
        HEADER.pack(99, 0, 1, 0),
        struct.pack(">Q", 2**64 - 1) * 100,
        encode(Frame(Kind.OPEN, b"{}", 0x8001)),
        encode(Frame(Kind.EXIT, b"{}", 77)),
        encode(Frame(Kind.STDIN, bytes(65536), 1)) * 40,
        b"".join(encode(Frame(Kind.OPEN, b'{"verb":"info"}', 1)) for _ in range(2)),
    ],
    ids=["4 GiB", "one too many", "no such kind", "garbage", "number", "nothing open", "no credit", "open twice"],
)
async def test_caller_that_breaks_the_rules_is_cut_off_and_others_stay(served, wire):
    process, target = served
    async with connected(target) as other, other.open(shell("exec sleep 1000")) as held:
        await receive(held, Kind.OPENED)
        async with connected(target) as bad, bad.open(shell("exec sleep 1000", stdin=True)) as stream:
            await receive(stream, Kind.OPENED)
            with contextlib.suppress(EnclavekitError):
                await stream.connection.send_raw(wire)
            with pytest.raises(EnclavekitError):
                await receive(stream, Kind.EXIT)
            assert not bad.is_alive
        await until(lambda: len(children(process)) == 1, "the bad caller's command stays")
        assert await outcome(other, shell("exit 3")) == (3, b"")


async def test_caller_that_reads_nothing_costs_no_more_than_its_window(served, inside):
    """It asks for a large file and for endless output, and never reads: the others do not notice."""
    process, target = served
    (inside.app / "data/large").write_bytes(bytes(30_000_000))
    wire = await connect(target)
    stuck = Connection(wire, "enclave")
    await shake_hands(stuck, wire.peer_certificate(), target)
    await stuck.send(Frame(Kind.OPEN, encode_payload(CopyOutRequest(path="/data/large")), 1))
    await stuck.send(Frame(Kind.OPEN, encode_payload(ExecRequest(argv=["yes"], system=True)), 2))
    await until(lambda: len(children(process)) == 1, "its command does not start")
    async with connected(target) as session:
        before = resident_kib(process)
        for _ in range(20):
            assert await outcome(session, shell("exit 4")) == (4, b"")
        assert resident_kib(process) - before < 16 * 1024
    stuck.abort()
    await until(lambda: not children(process), "its command stays")


async def test_copies_that_nobody_takes_keep_to_their_places(served, inside):
    """Each holds megabytes: those of a client beyond its places wait, and cost nothing."""
    process, target = served
    (inside.app / "data/large").write_bytes(bytes(8_000_000))
    request = CopyOutRequest(path="/data/large")
    async with connected(target) as session, contextlib.AsyncExitStack() as stack:
        stuck = [await stack.enter_async_context(session.open(request)) for _ in range(MAX_COPIES_OF_CLIENT)]
        for stream in stuck:
            await receive(stream, Kind.OPENED)
        await until(lambda: len(opened(process, "large")) >= MAX_COPIES_OF_CLIENT, "copies do not begin")
        waiting = [await stack.enter_async_context(session.open(request)) for _ in range(50)]
        async with connected(target) as other:
            assert await outcome(other, shell("exit 5")) == (5, b"")
        assert len(opened(process, "large")) <= 3 * MAX_COPIES_OF_CLIENT  # the file, its tree's root and what is read
        for stream in stuck:
            stream.close()
        for stream in waiting[:MAX_COPIES_OF_CLIENT]:
            await receive(stream, Kind.OPENED)


def opened(process, name):
    """Return the descriptors of a process that are of files of this name."""
    found = []
    for descriptor in os.listdir(f"/proc/{process.pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            found += [descriptor] * os.readlink(f"/proc/{process.pid}/fd/{descriptor}").endswith(f"/{name}")
    return found


def resident_kib(process):
    with open(f"/proc/{process.pid}/status") as source:
        return next(int(line.split()[1]) for line in source if line.startswith("VmRSS"))


@pytest.mark.skipif(ssl_keys.find_library() is None, reason="this Python's ssl cannot check callers by itself")
async def test_listener_holds_no_second_openssl(served, inside):
    """Package cryptography is a quarter of what the listener would be; it makes the keys at start, and goes."""
    process, target = served
    async with connected(target) as session:
        assert await outcome(session, shell("echo in")) == (0, b"in\n")
    mapped = Path(f"/proc/{process.pid}/maps").read_text()
    assert "libcrypto" in mapped
    assert "cryptography" not in mapped


async def test_listener_that_dies_is_heard_of_at_once(served):
    process, target = served
    async with connected(target) as session, session.open(shell("exec sleep 3")) as stream:
        await receive(stream, Kind.OPENED)
        process.kill()
        with pytest.raises(TransportError):
            await receive(stream, Kind.EXIT)
