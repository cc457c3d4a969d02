# SPDX-License-Identifier: Apache-2.0
"""What each command does first: see to enclaves whose supervisor was killed; and what `drop` waits for."""

from __future__ import annotations

import sys

from enclavekit_core.processes import wait_for_process

from enclavekit_rbuilds.run.leftovers import adopt_orphans, settle
from enclavekit_rbuilds.run.model import LaunchError, RunningEnclave
from enclavekit_rbuilds.run.store import Store

SUPERVISOR_TIMEOUT_S = 60.0  # it stops its proxies one after the other, each in a few seconds at most


def keep_house() -> Store:
    """Remove what killed supervisors left, give running enclaves new ones, and return the store."""
    store = Store()
    adopt_orphans(store, settle(store, lambda text: print(f"rbuilds: note: {text}", file=sys.stderr)))
    return store


def wait_for_enclave(store: Store, enclave: RunningEnclave) -> None:
    """Wait until an enclave has ended and its supervisor has noted how; not for one that was not started by rbuilds."""
    record = store.read(enclave.cid)
    if record is None or record.enclave is None or record.enclave.id != enclave.id:
        return  # its supervisor notes the end before it lets go of the record
    wait_for_process(record.supervisor)


def wait_for_supervisor(store: Store, enclave: RunningEnclave) -> None:
    """Wait until the supervisor of an enclave that was ended has removed everything. Raises LaunchError."""
    record = store.read(enclave.cid)
    if record is None or record.enclave is None or record.enclave.id != enclave.id:
        return  # not started by rbuilds, or all done
    if not wait_for_process(record.supervisor, SUPERVISOR_TIMEOUT_S):
        raise LaunchError("end", f"the proxies of {enclave.name}", f"process {record.supervisor.pid} still runs")
