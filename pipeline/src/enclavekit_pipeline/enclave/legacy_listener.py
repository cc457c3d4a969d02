# SPDX-License-Identifier: Apache-2.0
"""`pipeline listen --insecure-legacy-slc`: the Rust framework's protocol, for its clients, in debug images only.

Whoever reaches the port may do anything in the app's root: neither side proves anything, nothing is encrypted. It is
bounded all the same: a client that stalls, lies or leaves costs its own connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Coroutine
from typing import Any

from enclavekit_core import logs
from enclavekit_core.aio import start_server
from enclavekit_core.errors import ConfigError, EnclavekitError, TransportError
from enclavekit_core.peers import Peer
from enclavekit_core.streams import Listener
from enclavekit_nsm.client import NsmClient

from enclavekit_pipeline.channel.partial_file import PartialFile
from enclavekit_pipeline.enclave import legacy_files
from enclavekit_pipeline.enclave.clients import Refused
from enclavekit_pipeline.enclave.legacy_run import run_command, run_in_background
from enclavekit_pipeline.enclave.workplace import Workplace
from enclavekit_pipeline.wire.legacy_slc import (
    INTEGER,
    MAX_FILE_BYTES,
    MAX_FILES,
    MAX_TEXT_BYTES,
    Request,
    check_tree_name,
    decode_integer,
    decode_request,
    decode_text,
    encode_integer,
    encode_result,
    encode_text,
)

FLAG = "--insecure-legacy-slc"
MEASUREMENTS = (0, 1, 2)  # PCRs; zero in debug mode
MAX_CONNECTIONS = 16  # at once; a Rust listener serves one
STALL_TIMEOUT_S = 60.0  # without a byte, where one is due
CHUNK_BYTES = 256 * 1024

log = logs.get_logger("pipeline")


def check_debug(nsm: NsmClient) -> None:
    """Raises ConfigError unless the enclave runs in debug mode, where its parent can do all of this anyway."""
    for index in MEASUREMENTS:
        if any(nsm.describe_pcr(index).data):
            raise ConfigError(FLAG, "", f"this enclave is not in debug mode (PCR{index} is not zero)")


class LegacyListener:
    """Serves one listener."""

    def __init__(self, place: Workplace) -> None:
        self._place = place
        self._connections: set[asyncio.Task[None]] = set()
        self._background: set[asyncio.Task[None]] = set()

    async def run(self, listener: Listener) -> None:
        """Serve until cancelled; then end every connection and command."""
        log.warning("serving the old protocol: nothing is proven or encrypted", address=str(listener.address))
        server = await start_server(self._handle, listener)
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            server.close()
            tasks = [*self._connections, *self._background]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, peer: Peer) -> None:
        task = asyncio.current_task()
        assert task is not None
        if len(self._connections) >= MAX_CONNECTIONS:
            log.warning("old client turned away", peer=peer.text)
            writer.transport.abort()
            return
        self._connections.add(task)
        try:
            await self._serve(Wire(reader, writer), peer.text)
        finally:
            self._connections.discard(task)
            writer.close()

    async def _serve(self, wire: Wire, peer: str) -> None:
        """Serve the one request of a connection. What fails just ends it: the protocol has no words for that."""
        verb = ""
        try:
            request = decode_request(await wire.read(INTEGER.size))
            verb = request.name.lower().replace("_", "-")
            log.info("old request", peer=peer, verb=verb)
            await self._verbs[request](self, wire)
            log.info("old request done", peer=peer, verb=verb)
        except (EnclavekitError, Refused) as exc:
            log.info("old request cut", peer=peer, verb=verb, reason=str(exc))

    async def _run(self, wire: Wire) -> None:
        command = await wire.read_text("the command")
        # a client that sends more, or leaves, while its command runs has given it up
        gone = asyncio.ensure_future(wire.reader.read(1))
        try:
            output = await run_command(command, self._place, gone)
            await wire.write(encode_result(output.stdout, output.stderr, output.status))
        except (EnclavekitError, Refused) as exc:
            await wire.write(encode_result(b"", f"{exc}\n".encode(), 1))
        finally:
            gone.cancel()
            await asyncio.gather(gone, return_exceptions=True)

    async def _run_no_wait(self, wire: Wire) -> None:
        command = await wire.read_text("the command")
        started: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(run_in_background(command, self._place, started))
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        try:
            await started
            await wire.write(encode_result(b"", b"", 0))
        except (EnclavekitError, Refused) as exc:
            await wire.write(encode_result(b"", f"{exc}\n".encode(), 1))

    async def _fetch_file(self, wire: Wire) -> None:
        await self._send_file(wire, await wire.read_text("the path"))

    async def _send_file(self, wire: Wire, path: str) -> None:
        descriptor, size = await self._place.in_thread(legacy_files.open_source, self._place.app_root, path)
        try:
            await wire.write(encode_integer(size))
            left = size  # what the file grows by meanwhile is not announced, hence not sent
            while left:
                data = await self._place.in_thread(os.read, descriptor, min(left, CHUNK_BYTES))
                if not data:
                    raise TransportError("send", "the file", "it has become shorter")
                await wire.write(data)
                left -= len(data)
        finally:
            os.close(descriptor)

    async def _store_file(self, wire: Wire) -> None:
        await self._receive_file(wire, await wire.read_text("the path"))

    async def _receive_file(self, wire: Wire, path: str) -> None:
        left = await wire.read_integer(MAX_FILE_BYTES, "the file's size")
        file: PartialFile = await self._place.in_thread(legacy_files.open_target, self._place.app_root, path)
        try:
            while left:
                data = await wire.read_some(min(left, CHUNK_BYTES))
                try:
                    await self._place.in_thread(file.write, data)
                except OSError as exc:
                    raise TransportError("store", "the file", exc) from exc
                left -= len(data)
            await self._place.in_thread(legacy_files.finish, file)
        finally:
            await self._place.in_thread(file.close)

    async def _store_tree(self, wire: Wire) -> None:
        directory = await wire.read_text("the directory")
        for _ in range(await wire.read_integer(MAX_FILES, "the number of files")):
            name = await wire.read_text("a name")
            check_tree_name(name)
            await self._receive_file(wire, f"{directory}/{name}")

    async def _fetch_tree(self, wire: Wire) -> None:
        directory = await wire.read_text("the directory")
        names = await self._place.in_thread(legacy_files.list_tree, self._place.app_root, directory)
        await wire.write(encode_integer(len(names)))
        for name in names:
            await wire.write(encode_text(name))
            await self._send_file(wire, f"{directory}/{name}")

    _verbs: dict[Request, Callable[[LegacyListener, Wire], Coroutine[Any, Any, None]]] = {
        Request.RUN: _run,
        Request.FETCH_FILE: _fetch_file,
        Request.STORE_FILE: _store_file,
        Request.RUN_NO_WAIT: _run_no_wait,
        Request.STORE_TREE: _store_tree,
        Request.FETCH_TREE: _fetch_tree,
    }


class Wire:
    """A connection of the old protocol. Every method raises TransportError if the peer leaves or stalls."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self._writer = reader, writer

    async def read(self, count: int) -> bytes:
        with _as_transport_error("read from"):
            async with asyncio.timeout(STALL_TIMEOUT_S):
                return await self.reader.readexactly(count)

    async def read_some(self, limit: int) -> bytes:
        """Return 1..limit bytes."""
        with _as_transport_error("read from"):
            async with asyncio.timeout(STALL_TIMEOUT_S):
                if data := await self.reader.read(limit):
                    return data
        raise TransportError("read from", "the client", "it has left")

    async def read_integer(self, limit: int, what: str) -> int:
        return decode_integer(await self.read(INTEGER.size), limit, what)

    async def read_text(self, what: str) -> str:
        return decode_text(await self.read(await self.read_integer(MAX_TEXT_BYTES, what)), what)

    async def write(self, data: bytes) -> None:
        with _as_transport_error("write to"):
            self._writer.write(data)
            async with asyncio.timeout(STALL_TIMEOUT_S):
                await self._writer.drain()


@contextlib.contextmanager
def _as_transport_error(op: str) -> Any:
    try:
        yield
    except (OSError, EOFError, TimeoutError) as exc:
        raise TransportError(op, "the client", "it has left" if isinstance(exc, EOFError) else exc) from exc
