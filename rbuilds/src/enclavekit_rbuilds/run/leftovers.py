# SPDX-License-Identifier: Apache-2.0
"""What a killed supervisor leaves: an enclave that still runs gets a new one, everything of one that ended goes.

Only what a record of ours names is touched, and processes only if pid and start time are those of the record.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable

from enclavekit_core.errors import EnclavekitError
from enclavekit_core.processes import boot_id, is_alive

from enclavekit_rbuilds.run.backend import open_backend
from enclavekit_rbuilds.run.nft import remove_rules
from enclavekit_rbuilds.run.proxy_pool import ProxyPool
from enclavekit_rbuilds.run.store import Record, Store

ADOPT_TIMEOUT_S = 30.0  # a Python start


def settle(store: Store, note: Callable[[str], None]) -> list[int]:
    """Remove what enclaves without supervisor left, and return the CIDs of those that still run without one."""
    orphans = []
    with store.locked():
        for cid in store.cids():
            handle = store.claim(cid)
            if handle is None:
                continue
            try:
                record = store.read(cid)
                if record is None:
                    store.remove(cid)
                elif _still_runs(record):
                    orphans.append(cid)
                else:
                    _remove(store, record, note)
            finally:
                os.close(handle)
        ProxyPool(store).release_dead(set(store.cids()))
    return orphans


def _still_runs(record: Record) -> bool:
    return record.boot_id == boot_id() and record.holder is not None and is_alive(record.holder)


def _remove(store: Store, record: Record, note: Callable[[str], None]) -> None:
    if record.boot_id == boot_id():
        if record.enclave is None:
            _end_unfinished(record, note)
        if record.has_rules:
            try:
                remove_rules(store, record.cid)
            except EnclavekitError as exc:
                note(f"{exc}; tried again at the next start")
                return
    store.remove(record.cid)


def _end_unfinished(record: Record, note: Callable[[str], None]) -> None:
    """End an enclave whose launch was killed half-way: its network was never promised to anybody."""
    try:
        backend = open_backend(record.plan.backend)
        for enclave in backend.running():
            if enclave.cid == record.cid:
                note(f"ending enclave {enclave.name}, whose launch was killed half-way")
                backend.terminate(enclave)
    except EnclavekitError as exc:
        note(str(exc))


def adopt_orphans(store: Store, cids: list[int]) -> None:
    """Start supervisors for enclaves that lost theirs, and wait until they have taken over."""
    from enclavekit_rbuilds.run.front import start_supervisor

    for cid in cids:
        with start_supervisor({"adopt": cid}, store) as connection, contextlib.suppress(TimeoutError):
            connection.settimeout(ADOPT_TIMEOUT_S)
            connection.recv(1)
