# SPDX-License-Identifier: Apache-2.0
"""Start an enclave: claim a name, a CID and a block of ids under the lock, then hand over to a supervisor."""

from __future__ import annotations

import os

from enclavekit_core.processes import boot_id, identify

from enclavekit_emulator.daemon import Front, start_daemon
from enclavekit_emulator.id_map import MAX_SLOTS, plan_id_map, read_account
from enclavekit_emulator.identity import new_enclave_id
from enclavekit_emulator.image import check_readable, open_image
from enclavekit_emulator.leftovers import remove_leftovers
from enclavekit_emulator.nitro_errors import NitroError
from enclavekit_emulator.qemu_command import Announcement
from enclavekit_emulator.qemu_machine import find_qemu
from enclavekit_emulator.run_request import RunRequest, boot_timeout_s, check_memory, unique_name
from enclavekit_emulator.state import EnclaveRecord, EnclaveStore
from enclavekit_emulator.supervisor import Launch, Supervisor


def launch(store: EnclaveStore, request: RunRequest, faults: tuple[str, ...] = ()) -> tuple[EnclaveRecord, list[str]]:
    """Start an enclave and wait for its heartbeat.

    Returns:
        The record of the running enclave, and what does not work on this machine.
    Raises:
        NitroError: nothing of the enclave is left then.
    """
    eif_path = os.path.abspath(request.eif_path)
    size_bytes = check_readable(eif_path)
    open_image(eif_path)
    check_memory(request, size_bytes, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    with store.locked():
        remove_leftovers(store)
        record = _claim(store, request, eif_path)
        plan = Launch(
            record=record,
            id_map=plan_id_map(read_account(), record.slot),
            boot_timeout_s=boot_timeout_s(size_bytes, request.memory_mib),
            attach_console=request.attach_console,
            faults=faults,
            announcement=None if request.announcement is None else Announcement(request.announcement),
        )
        os.mkdir(store.directory(record.enclave_id), 0o700)
        store.write(record)
        front = start_daemon(
            lambda sock: Supervisor(store, plan, sock).run(),
            store.directory(record.enclave_id),
        )
        front.read()  # it has put its own pid into the record: from here the enclave is its
    try:
        notes = _wait_for_boot(front)
    finally:
        front.close()
    running = store.read(record.enclave_id)
    return running or record, notes


def _wait_for_boot(front: Front) -> list[str]:
    return [str(note) for note in front.read().get("notes", [])]


def _claim(store: EnclaveStore, request: RunRequest, eif_path: str) -> EnclaveRecord:
    """Return the record of a new enclave. Raises NitroError 29 if its CID is taken."""
    running = store.running()
    if request.cid and store.is_cid_taken(request.cid):
        owner = next((f" by enclave {record.name}" for record in running if record.cid == request.cid), "")
        raise NitroError(29, f"cannot use CID {request.cid}: it is taken{owner}")
    slots = {record.slot for record in running}
    supervisor = identify(os.getpid())
    assert supervisor is not None
    return EnclaveRecord(
        enclave_id=new_enclave_id(),
        name=unique_name(request.name, {record.name for record in running}),
        cid=request.cid or store.choose_cid(),
        slot=next(slot for slot in range(MAX_SLOTS) if slot not in slots),
        memory_mib=request.memory_mib,
        cpu_ids=request.cpu_ids,
        debug_mode=request.debug_mode,
        eif_path=eif_path,
        machine=choose_machine(request.machine, eif_path),
        boot_id=boot_id(),
        supervisor=supervisor,
    )


def choose_machine(named: str, eif_path: str) -> str:
    """Return process or qemu; auto is qemu where there is one for the image's architecture."""
    if named != "auto":
        return named
    from enclavekit_eif.reader import arch_name

    with open_image(eif_path) as eif:
        return "qemu" if find_qemu(arch_name(eif)) else "process"
