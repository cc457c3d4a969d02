# SPDX-License-Identifier: Apache-2.0
"""Which enclaves a command means: a name, an id, a CID, the most recent, or all."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from enclavekit_core.errors import EnclavekitError, InputError
from enclavekit_core.processes import identify

from enclavekit_rbuilds.run.backend import Backend, usable_backends
from enclavekit_rbuilds.run.model import RunningEnclave


def list_running(named: str | None) -> list[tuple[Backend, RunningEnclave]]:
    """Return what runs on all backends of this host, or on the named one. Raises EnclavekitError."""
    found: list[tuple[Backend, RunningEnclave]] = []
    backends = usable_backends(named)
    for backend in backends:
        try:
            found += [(backend, enclave) for enclave in backend.running()]
        except EnclavekitError as exc:
            if len(backends) == 1:
                raise
            print(f"rbuilds: {exc}", file=sys.stderr)  # the other one's are shown all the same
    return found


def select(named_backend: str | None, wanted: str | None, *, recent: bool) -> tuple[Backend, RunningEnclave]:
    """Return the enclave meant. Raises InputError if there is none, or more than one."""
    running = list_running(named_backend)
    if recent:
        if not running:
            raise InputError("find", "the most recent enclave", "none is running")
        return max(enumerate(running), key=lambda item: (_started(item[1][1]), item[0]))[1]
    assert wanted is not None
    index = match([enclave for _, enclave in running], wanted)
    return running[index]


def match(running: Sequence[RunningEnclave], wanted: str) -> int:
    """Return the index of the enclave with that id, name or CID, in this order. Raises InputError. Pure."""
    for found in (
        [index for index, enclave in enumerate(running) if enclave.id == wanted],
        [index for index, enclave in enumerate(running) if enclave.name == wanted],
        [index for index, enclave in enumerate(running) if str(enclave.cid) == wanted],
    ):
        if len(found) == 1:
            return found[0]
        if found:
            ids = ", ".join(f"{running[index].id} ({running[index].backend})" for index in found)
            raise InputError("find enclave", wanted, f"several have that name: {ids}; use the id")
    names = ", ".join(enclave.name for enclave in running) or "none is running"
    raise InputError("find enclave", wanted, f"no running enclave has that name, id or CID; running: {names}")


def _started(enclave: RunningEnclave) -> int:
    process = identify(enclave.pid)
    return process.start_ticks if process is not None else 0
