# SPDX-License-Identifier: Apache-2.0
"""What may be asked of the running service, and over which address."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

from enclavekit_core.address import parse_address
from enclavekit_core.errors import InputError

from enclavekit_fs_monitor import report
from enclavekit_fs_monitor.control_server import Answer, ControlServer, path_in
from enclavekit_fs_monitor.directory_digest import DirectoryDigest, NotHashedError, NotThereError
from enclavekit_fs_monitor.file_state import State
from enclavekit_fs_monitor.tracker import Record, record_of

if TYPE_CHECKING:
    from enclavekit_fs_monitor.service import Monitor

READY_WAIT_S = 20.0  # a request that waits for readiness is answered after this, and asks again
Result = TypeVar("Result")


def serve(monitor: Monitor) -> list[ControlServer]:
    """Answer on the socket and, for scrapers, over TCP. Raises ConfigError, TransportError."""
    loop = asyncio.get_running_loop()

    def ask(coroutine: Coroutine[Any, Any, Result]) -> Result:
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result()

    open_to_all: dict[str, Answer] = {
        "/metrics": lambda _: ask(_metrics(monitor)),
        "/health": lambda _: ask(_health(monitor)),
    }
    private: dict[str, Answer] = {
        **open_to_all,
        "/status": lambda query: ask(_status(monitor, wait=query.get("wait") == "ready")),
        "/hash": lambda query: ask(_hash(monitor, path_in(query))),
    }
    servers = [ControlServer(parse_address(monitor.config.socket, "unix"), private)]
    if monitor.config.metrics_listen:
        servers.append(ControlServer(parse_address(monitor.config.metrics_listen, "tcp"), open_to_all))
    return servers


async def _metrics(monitor: Monitor) -> str:
    return report.metrics_of(monitor)


async def _health(monitor: Monitor) -> dict[str, object]:
    """Whether the loop turns; being ready, or on the bus, is another matter."""
    return {"status": "ok", "ready": monitor.ready.is_set(), "bus": monitor.bus.is_connected}


async def _status(monitor: Monitor, *, wait: bool) -> dict[str, object]:
    if wait:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(monitor.ready.wait(), READY_WAIT_S)
    return report.status_of(monitor)


async def _hash(monitor: Monitor, path: bytes) -> dict[str, object]:
    """Raises InputError for what is not watched, NotHashedError for what has no hash now."""
    if monitor.root_of(path) is None:
        raise InputError("find", ascii(os.fsdecode(path)), "it lies in no root")
    record = monitor.tracker.get(path)
    if record is not None:
        return _file_hash(path, record)
    return await _directory_digest(monitor, path)


def _file_hash(path: bytes, record: Record) -> dict[str, object]:
    name = os.fsdecode(path)
    if record.state is not State.CLOSED or record.value is None:
        raise NotHashedError(f"cannot tell the hash of {name!a}: it is {record.state.value}", path)
    found = record_of(record.value, record.generation)
    return {
        "path": name,
        "kind": "file",
        "state": record.state.value,
        "sha3_512": found.digest.hex(),
        "size": found.size_bytes,
        "mtime_ns": found.mtime_ns,
        "generation": found.generation,
    }


async def _directory_digest(monitor: Monitor, path: bytes) -> dict[str, object]:
    root = monitor.root_of(path)
    assert root is not None
    below = path.rstrip(b"/") + b"/"
    known = {
        file: (record.digest, record.signature)
        for file, record in monitor.tracker.closed()
        if file.startswith(below) and record.digest and record.signature
    }
    digest = DirectoryDigest(root.tree, known)
    try:
        value = await asyncio.get_running_loop().run_in_executor(None, digest.compute, path)
    except NotHashedError as exc:
        # links that were made outside, say, are not announced: whoever asks again gets an answer
        await root.look_again(exc.path)
        raise
    except OSError as exc:
        raise NotThereError("find", ascii(os.fsdecode(path)), "it is not there, or it is ignored") from exc
    return {"path": os.fsdecode(path), "kind": "directory", "sha3_512": value.hex(), "files": digest.files}
