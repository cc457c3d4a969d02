# SPDX-License-Identifier: Apache-2.0
"""From a claimed record to a running first instruction, on either machine; called by the supervisor, which cleans up.

process   PID 1 is forked first and unpacks the image while it is measured; it executes /init when both are done
qemu      QEMU and its device are forked first and wait; QEMU runs when the image is measured and the NSM is there
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from enclavekit_core.fabric import SIBLINGS_SOCKET, write_record
from enclavekit_core.processes import identify
from enclavekit_core.streams import DEFAULT_BACKLOG

from enclavekit_emulator import enclave_process, memory_limit, qemu_machine
from enclavekit_emulator.image import describe_labels, file_identity, measure_image, open_image, open_ramdisks
from enclavekit_emulator.kvm_trial import choose_accelerator
from enclavekit_emulator.nitro_errors import BOOT_FAILURE, EIF_PARSING, NitroError
from enclavekit_emulator.parent_ports import EXIT_REPORT_PORT, HEARTBEAT_PORT, NSM_PORT, listen_unix
from enclavekit_emulator.qemu_command import (
    BINARIES,
    CONSOLES,
    NITRO_MACHINE,
    NSM_PARAMETER,
    Announcement,
    NitroPlan,
    QemuPlan,
    nitro_command,
    qemu_command,
    with_parameters,
)
from enclavekit_emulator.root_fs import RootPlan
from enclavekit_emulator.run_request import MIB
from enclavekit_emulator.state import CONTROL_SOCKET, NSM_SOCKET, ROOT_DIRECTORY
from enclavekit_emulator.tsc import measure_tsc_khz

if TYPE_CHECKING:
    from enclavekit_eif.reader import Eif

    from enclavekit_emulator.state import EnclaveRecord
    from enclavekit_emulator.supervisor import Supervisor

NITRO_NOTE = (
    "QEMU's own NSM signs nothing, and zeroes no PCR in debug mode: a kernel with an NSM driver gets attestation "
    "documents that every verifier refuses"
)


def boot_process(owner: Supervisor) -> None:
    """Start the enclave in namespaces of its own. Raises NitroError."""
    record, id_map = owner.record, owner.launch.id_map
    own, fabric = owner.store.directory(record.enclave_id), owner.store.fabric_directory(record.cid)
    eif = open_image(record.eif_path)
    identity = file_identity(eif)
    root_ids = (id_map.root_uid, id_map.root_gid)
    os.mkdir(os.path.join(own, ROOT_DIRECTORY), 0o755)
    _listen(owner)
    # as devtmpfs makes it: for root only, until somebody inside decides otherwise
    owner.listeners["nsm"] = listen_unix(own, NSM_SOCKET, 0o600, root_ids)
    owner.listeners["siblings"] = listen_unix(
        os.path.join(fabric, "parent"), SIBLINGS_SOCKET, 0o666, backlog=DEFAULT_BACKLOG
    )
    os.chown(fabric, *root_ids)  # last: from here its owner can put there what it likes
    limit_bytes = record.memory_mib * MIB
    owner.update(cgroup=memory_limit.create_memory_group(record.enclave_id, limit_bytes))
    root = RootPlan(
        mount_point=os.path.join(own, ROOT_DIRECTORY),
        size_bytes=limit_bytes,
        cid=record.cid,
        fabric_directory=fabric,
        parent_fabric_directory=owner.store.fabric_directory(3),
        nsm_socket=os.path.join(own, NSM_SOCKET),
        single_user=id_map.is_single,
        extract=open_ramdisks(eif, single_user=id_map.is_single),
    )
    process = enclave_process.spawn(root, id_map, owner.record.cgroup, limit_bytes)
    owner.machine = process
    owner.update(init=identify(process.pid))
    if not process.memory_is_grouped:
        owner.notes.append("no cgroup can be made here: memory is limited per process, not for the whole enclave")
    _measure(owner, eif)  # PID 1 unpacks the image meanwhile
    namespace, owner.console = process.wait_until_built()
    _check_unchanged(owner, eif, identity)
    _register(owner, transport="fabric", pid_namespace=namespace, carrier_pid=os.getpid())
    process.start_init()


def boot_qemu(owner: Supervisor) -> None:
    """Start the enclave as a virtual machine. Raises NitroError."""
    from enclavekit_eif.reader import arch_name

    record = owner.record
    fabric = owner.store.fabric_directory(record.cid)
    eif = open_image(record.eif_path)
    identity = file_identity(eif)
    arch = arch_name(eif)
    binary = _find_qemu(record, arch)
    _listen(owner)
    owner.listeners["nsm"] = listen_unix(os.path.join(fabric, "parent"), f"{NSM_PORT}.sock", 0o666)
    machine = qemu_machine.spawn(fabric, record.cid)
    owner.machine, owner.console = machine, machine.console
    owner.update(init=identify(machine.pid))
    is_nitro = record.machine == "qemu-nitro"
    try:
        kernel = qemu_machine.copy_sections(eif, [eif.kernel], machine.kernel)
        if is_nitro:
            payload = qemu_machine.copy_image(eif, machine.payload)
        else:
            payload = qemu_machine.copy_sections(eif, eif.ramdisks, machine.payload)
    except OSError as exc:
        raise NitroError(BOOT_FAILURE, f"cannot load {record.eif_path}: {(exc.strerror or str(exc)).lower()}") from exc
    _measure(owner, eif)
    _check_unchanged(owner, eif, identity)
    accelerator, note = choose_accelerator(binary, arch, kernel, machine.kernel)
    owner.notes += [note] if note else []
    owner.notes += [NITRO_NOTE] if is_nitro else []
    _register(
        owner,
        transport="hybrid",
        path=os.path.join(fabric, qemu_machine.HYBRID_SOCKET),
        carrier_pid=machine.device_pid,
    )
    added = _hypervisor_parameters(arch, accelerator)
    if is_nitro:
        command = nitro_command(
            NitroPlan(
                binary=binary,
                accelerator=accelerator,
                memory_mib=record.memory_mib,
                cpus=len(record.cpu_ids),
                image=payload,
                cmdline=with_parameters("", added),
                vhost_fd=machine.vhost_fd,
                module_id=record.enclave_id,
            )
        )
    else:
        command = qemu_command(
            QemuPlan(
                binary=binary,
                arch=arch,
                accelerator=accelerator,
                memory_mib=record.memory_mib,
                cpus=len(record.cpu_ids),
                kernel=kernel,
                initrd=payload,
                cmdline=with_parameters(eif.cmdline().decode("utf-8", "replace"), added),
                vhost_fd=machine.vhost_fd,
                announcement=_announcement(owner, eif),
            )
        )
    machine.start(command)


def _find_qemu(record: EnclaveRecord, arch: str) -> str:
    """Return the QEMU that has the machine. Raises NitroError 36."""
    binary = qemu_machine.find_qemu(arch)
    cannot = f"cannot run {record.eif_path} as a virtual machine"
    if binary is None:
        raise NitroError(BOOT_FAILURE, f"{cannot}: {BINARIES[arch]} is missing")
    if record.machine == "qemu-nitro" and not (arch == "x86_64" and qemu_machine.has_nitro_machine(binary)):
        raise NitroError(
            BOOT_FAILURE, f"{cannot}: {binary} has no machine {NITRO_MACHINE} (QEMU 9.2 or later for x86_64 may have)"
        )
    return binary


def _hypervisor_parameters(arch: str, accelerator: str) -> dict[str, str]:
    """Return what this hypervisor adds to the kernel's command line; that is not measured, as on Nitro."""
    added = {NSM_PARAMETER: str(NSM_PORT)}
    if arch == "x86_64" and accelerator == "tcg" and (khz := measure_tsc_khz()):
        added["tsc_early_khz"] = str(khz)
    if CONSOLES[arch] != CONSOLES["x86_64"]:
        added["console"] = CONSOLES[arch]
    return added


def _announcement(owner: Supervisor, eif: Eif) -> Announcement:
    """As on Nitro if the image says that its kernel can; ACPI for a kernel that is for the emulator only."""
    if owner.launch.announcement is not None:
        return owner.launch.announcement
    kernel = describe_labels(eif).get("Metadata", {}).get("kernel")  # rbuilds' own entry; foreign images have none
    capable = kernel.get("nitro-capable") if isinstance(kernel, dict) else None
    return Announcement.ACPI if capable is False else Announcement.CMDLINE


def _listen(owner: Supervisor) -> None:
    """Make the enclave's fabric directory and listen where it and the user call."""
    fabric = owner.store.fabric_directory(owner.record.cid)
    parent = os.path.join(fabric, "parent")
    os.mkdir(fabric, 0o755)
    os.mkdir(parent, 0o755)
    owner.listeners = {
        "heartbeat": listen_unix(parent, f"{HEARTBEAT_PORT}.sock", 0o666),
        "exit": listen_unix(parent, f"{EXIT_REPORT_PORT}.sock", 0o666),
        "control": listen_unix(owner.store.directory(owner.record.enclave_id), CONTROL_SOCKET, 0o600),
    }


def _measure(owner: Supervisor, eif: Eif) -> None:
    measurements = measure_image(eif)
    owner.update(measurements=measurements, image=describe_labels(eif))
    owner.serve_nsm(measurements)


def _check_unchanged(owner: Supervisor, eif: Eif, identity: tuple[int, ...]) -> None:
    if file_identity(eif) != identity:
        raise NitroError(EIF_PARSING, f"cannot run {owner.record.eif_path}: it changed while it was loaded")


def _register(owner: Supervisor, **route: object) -> None:
    record = owner.record
    write_record(owner.store.registry_record(record.cid), {"cid": record.cid, "enclave_id": record.enclave_id, **route})
