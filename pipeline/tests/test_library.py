# SPDX-License-Identifier: Apache-2.0
"""The library against a real listener: what a program does in five lines."""

import asyncio
import secrets
import signal

import pytest
from enclavekit_core import fabric
from enclavekit_core.errors import CommandError, ConfigError, InputError, TransportError, VerificationError
from enclavekit_pipeline import Enclave
from enclavekit_pipeline.channel.mux import RequestRefused

from .conftest import CID, PCRS

DATA = secrets.token_bytes(3_000_000)


@pytest.fixture
def make(enclave, monkeypatch):
    monkeypatch.setenv(fabric.RUNTIME_DIR_VARIABLE, enclave.environment[fabric.RUNTIME_DIR_VARIABLE])

    def make(identity="alice", pcrs=None, **more):
        who = {"cid": CID, "identity": enclave.directory / identity, "insecure_dev_root": enclave.dev_root}
        return Enclave(**{**who, "pcrs": pcrs or {0: PCRS[0]}, **more})

    return make


def shell(script):
    return ["sh", "-c", script]


async def test_exec_with_everything(make):
    async with make() as enclave:
        result = await enclave.exec(shell("cat; echo error >&2; exit 3"), stdin=DATA, system=True)
        assert (result.status, result.stdout, result.stderr) == (3, DATA, b"error\n")
        result = await enclave.exec(
            shell("echo $COLOR; pwd; id -u"), environment={"COLOR": "red"}, directory="/tmp", user="1234", system=True
        )
        assert result.stdout == b"red\n/tmp\n1234\n"
        assert (await enclave.exec(shell("sleep 100"), timeout_s=0.2, system=True)).timed_out
        with pytest.raises(CommandError):
            await enclave.exec(shell("exit 1"), system=True, check=True)
        with pytest.raises(RequestRefused, match="cannot run"):
            await enclave.exec(["/no/such"], system=True)


async def test_input_that_the_command_does_not_read_is_no_failure(make):
    async with make() as enclave:
        assert (await enclave.exec(shell("exit 4"), stdin=DATA, system=True)).status == 4


async def test_streams_of_a_command_under_way(make):
    async with make() as enclave:
        async with enclave.start(["cat"], stdin=True, system=True) as process:
            await process.write(b"one")
            assert await anext(aiter(process.stdout)) == b"one"
            await process.write(b"two")
            await process.close_stdin()
            assert await process.stdout.read() == b"two"
            assert (await process.wait()).status == 0
        async with enclave.start(shell("kill -STOP $$"), system=True) as process:
            await process.send_signal(signal.SIGTERM)
        async with enclave.start(shell("yes; exit 5"), system=True) as process:
            await process.send_signal(signal.SIGTERM)
            assert (await process.wait()).signal == signal.SIGTERM  # its output, unread, did not hold it


async def test_output_beyond_the_limit_is_an_error_and_the_session_stays(make):
    async with make() as enclave:
        async with enclave.start(["yes"], system=True) as process:
            with pytest.raises(InputError):
                await process.stdout.read(most=100_000)
        assert (await enclave.exec(shell("exit 2"), system=True)).status == 2


async def test_files_both_ways_at_once(make, enclave, tmp_path):
    (tmp_path / "source").write_bytes(DATA)
    async with make() as inside:
        sizes = await asyncio.gather(*(inside.put(tmp_path / "source", f"/data/in-{i}") for i in range(5)))
        assert sizes == [len(DATA)] * 5
        assert (enclave.app / "data/in-4").read_bytes() == DATA
        await asyncio.gather(*(inside.get(f"/data/in-{i}", tmp_path / f"back-{i}") for i in range(5)))
        with pytest.raises(RequestRefused, match="no such file"):
            await inside.get("/data/none", tmp_path / "none")
    assert all((tmp_path / f"back-{i}").read_bytes() == DATA for i in range(5))
    assert not (tmp_path / "none").exists()


async def test_what_it_is_and_who_we_are(make):
    async with make() as enclave:
        info = await enclave.info()
        assert (info.client, info.system, info.allow) == ("alice", True, ["exec", "cp-in", "cp-out"])
        assert enclave.verified.pcrs[0] == PCRS[0]
        assert await enclave.ping() > 0
    with pytest.raises(ConfigError):
        await enclave.ping()


async def test_what_is_refused(make):
    with pytest.raises(VerificationError):
        await make(pcrs={0: b"\x0f" * 48}).__aenter__()
    with pytest.raises(ConfigError):
        make(name="both")
    with pytest.raises(InputError):
        make(cid=None, name="nobody-has-this-name")
    with pytest.raises(TransportError):
        make(cid=3)
    async with make("bob") as enclave:
        with pytest.raises(RequestRefused, match="bob may not"):
            await enclave.exec(["ls"])
