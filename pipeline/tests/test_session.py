# SPDX-License-Identifier: Apache-2.0
"""Many requests on one attested connection, against a real listener."""

import asyncio
import socket

import pytest
from enclavekit_core.errors import TransportError
from enclavekit_pipeline.channel.mux import RequestRefused
from enclavekit_pipeline.host import session as session_module
from enclavekit_pipeline.host.client import receive
from enclavekit_pipeline.host.session import MAX_TURNS, Session, connected
from enclavekit_pipeline.wire.exec_messages import ExecRequest, Exit
from enclavekit_pipeline.wire.frames import Kind
from enclavekit_pipeline.wire.messages import decode_payload

from .conftest import CID
from .test_exec import Held


@pytest.fixture
def target(enclave, target_for):
    return target_for("alice", CID)


def shell(script, **more):
    return ExecRequest(argv=["sh", "-c", script], system=True, **more)


async def outcome(session, request):
    """Run a command to its end; return (status, output)."""
    output = b""
    async with session.open(request) as stream:
        await receive(stream, Kind.OPENED)
        while (frame := await receive(stream, Kind.EXIT, Kind.STDOUT, Kind.STDERR)).kind is not Kind.EXIT:
            output += frame.payload
            await stream.consumed(frame)
    return decode_payload(Exit, frame.payload).status, output


async def test_hundred_commands_at_once_on_one_connection(target):
    async with connected(target) as session:
        assert session.name == "alice"
        got = await asyncio.gather(*(outcome(session, shell(f"echo {i}; exit {i}")) for i in range(100)))
    assert got == [(i, b"%d\n" % i) for i in range(100)]


async def test_refused_request_leaves_the_others_alone(target):
    async with connected(target) as session:
        with pytest.raises(RequestRefused) as caught:
            await outcome(session, ExecRequest(argv=["/no/such"], system=True))
        assert caught.value.code == "input"
        assert await outcome(session, shell("exit 3")) == (3, b"")


async def test_request_that_is_given_up_ends_in_the_enclave_and_the_connection_stays(target, tmp_path):
    held = Held(tmp_path / "held")
    async with connected(target) as session:
        async with session.open(shell(f"exec 3> {held.path}; echo ready >&3; exec sleep 1000")):
            assert await asyncio.to_thread(held.read) == b"ready\n"
        assert await asyncio.to_thread(held.read) == b""  # the end: the command is gone
        assert await outcome(session, shell("exit 5")) == (5, b"")
        assert await session.ping() > 0


async def test_more_requests_than_streams_wait_for_their_turn(target):
    async with connected(target) as session:
        got = await asyncio.gather(*(outcome(session, shell("exit 7")) for _ in range(150)))
    assert set(got) == {(7, b"")}


async def test_who_is_turned_away_comes_again(target, monkeypatch):
    turned_away = 0

    async def shake_hands(connection, certificate, target, shake_hands=session_module.shake_hands):
        nonlocal turned_away
        if turned_away < 2:
            turned_away += 1
            socket.socket.shutdown(connection._wire._sock, socket.SHUT_RDWR)  # as if the enclave had
        return await shake_hands(connection, certificate, target)

    monkeypatch.setattr(session_module, "shake_hands", shake_hands)
    monkeypatch.setattr(session_module, "FIRST_TURN_S", 0.001)
    async with connected(target) as session:
        assert await outcome(session, shell("exit 3")) == (3, b"")
    assert turned_away == 2
    turned_away = -MAX_TURNS
    with pytest.raises(TransportError, match="before it proved anything"):
        await Session.enter(target)


async def test_session_that_is_closed_says_so(target):
    async with connected(target) as session:
        pass
    assert not session.is_alive
    with pytest.raises(TransportError):
        async with session.open(shell("true")):
            pass


async def test_one_connection_does_not_wait_for_another(target, tmp_path):
    """A command that is not read from holds up neither its own connection nor others."""
    async with connected(target) as slow, connected(target) as other, slow.open(shell("yes")) as stream:
        await receive(stream, Kind.OPENED)  # and no more: its output stops at the credit
        assert await outcome(slow, shell("exit 1")) == (1, b"")
        assert await outcome(other, shell("exit 2")) == (2, b"")
