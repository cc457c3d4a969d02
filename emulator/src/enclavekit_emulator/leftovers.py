# SPDX-License-Identifier: Apache-2.0
"""Remove what an emulated enclave leaves outside its namespaces, in order or after its supervisor was killed.

Mounts are not among it: they exist in the enclave's mount namespace only and end with its last process.
The enclave could write into its fabric directory, so that is removed without following links and without recursion.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat

from enclavekit_core.processes import boot_id, kill_and_wait

from enclavekit_emulator.memory_limit import remove_memory_group
from enclavekit_emulator.state import EnclaveRecord, EnclaveStore

MAX_KILL_WAIT_S = 10.0  # a PID 1 under SIGKILL first waits for all processes of its namespace


def remove_leftovers(store: EnclaveStore) -> list[str]:
    """Remove everything of enclaves whose supervisor has ended, and return their ids; call it under the lock."""
    removed = []
    for enclave_id in store.enclave_ids():
        record = store.read(enclave_id)
        if record is not None and record.is_alive():
            continue
        if record is not None:
            if record.init is not None and record.boot_id == boot_id():
                kill_and_wait(record.init, MAX_KILL_WAIT_S)
            remove_traces(store, record)
        else:
            # killed between mkdir and its first record: nothing else exists yet
            shutil.rmtree(store.directory(enclave_id), ignore_errors=True)
        removed.append(enclave_id)
    return removed


def remove_traces(store: EnclaveStore, record: EnclaveRecord) -> None:
    """Remove directory, registry record, fabric directory and cgroup of an enclave whose processes have ended.

    Raises: OSError if the cgroup stays busy; the record is kept then, and the next command tries again.
    """
    with contextlib.suppress(FileNotFoundError):
        os.unlink(store.registry_record(record.cid))
    remove_tree(store.fabric_directory(record.cid))
    if record.cgroup is not None:
        remove_memory_group(record.cgroup)
    # last: as long as the record exists, its CID and slot are not given away
    shutil.rmtree(store.directory(record.enclave_id))


def remove_tree(top: str) -> None:
    """Remove a directory that a hostile enclave has filled, and that nobody writes to any more.

    Works on names relative to open directories, so that links are removed and never followed, and flattens as it goes:
    depth costs neither stack nor open files, however deep the enclave has nested.
    """
    try:
        handle = os.open(top, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        serial = 0
        while names := os.listdir(handle):
            for name in names:
                if not stat.S_ISDIR(os.stat(name, dir_fd=handle, follow_symlinks=False).st_mode):
                    os.unlink(name, dir_fd=handle)
                    continue
                serial = _lift_children(handle, name, serial)
                os.rmdir(name, dir_fd=handle)
    finally:
        os.close(handle)
    os.rmdir(top)


def _lift_children(top: int, name: str, serial: int) -> int:
    """Empty the directory `name` below `top`: unlink its files, move its directories up to `top`."""
    if os.geteuid() != 0:
        os.chmod(name, 0o700, dir_fd=top)  # its owner is us, and may have locked itself out
    handle = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=top)
    try:
        for child in os.listdir(handle):
            if not stat.S_ISDIR(os.stat(child, dir_fd=handle, follow_symlinks=False).st_mode):
                os.unlink(child, dir_fd=handle)
                continue
            if os.geteuid() != 0:
                os.chmod(child, 0o700, dir_fd=handle)  # moving a directory writes its ".."
            while True:
                serial += 1
                lifted = f".removed-{serial}"
                try:
                    os.stat(lifted, dir_fd=top, follow_symlinks=False)
                except FileNotFoundError:
                    os.rename(child, lifted, src_dir_fd=handle, dst_dir_fd=top)
                    break
    finally:
        os.close(handle)
    return serial
