# SPDX-License-Identifier: Apache-2.0
"""What keeps a host without Nitro from running emulated enclaves. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from enclavekit_rbuilds.run.findings import INSTALL, Finding, Wanted, ok
from enclavekit_rbuilds.run.host_facts import HostFacts

SUBUIDS_NEEDED = 65536


def diagnose_no_nitro(facts: HostFacts) -> Iterator[Finding]:
    if facts.nitro_device is not None:
        yield Finding(
            "warning",
            "emulated-on-nitro",
            "this host has /dev/nitro_enclaves, and yet the emulator is looked at",
            "--backend nitro-emu, or nitro-cli is not installed",
            INSTALL,
        )
        return
    cause, cure = "this is no EC2 instance", "for confidential enclaves, use an EC2 instance with enclaves enabled"
    if facts.instance_id is not None:
        cause = (
            f"this is the EC2 instance {facts.instance_id} ({facts.product}), without enclaves enabled or its module"
        )
        cure = "stop it, enable its enclave option, sudo modprobe nitro_enclaves; " + INSTALL
    yield Finding(
        "note",
        "no-nitro",
        "no /dev/nitro_enclaves: images run in nitro-emu here, emulated and NOT confidential",
        cause,
        cure,
    )


def diagnose_emulator(facts: HostFacts, wanted: Wanted) -> Iterator[Finding]:
    if "nitro-emu" not in facts.programs:
        yield Finding(
            "error",
            "nitro-emu-missing",
            "nitro-emu is not installed",
            "it is a part of its own",
            "pip install enclavekit-emulator (from this release's checkout: pip install ./emulator)",
        )
        return
    yield ok("nitro-emu", f"nitro-emu: {facts.programs['nitro-emu'].path}")
    if facts.max_user_namespaces == 0:
        yield Finding(
            "error",
            "userns-disabled",
            "user namespaces are switched off",
            "user.max_user_namespaces is 0",
            "sudo sysctl user.max_user_namespaces=10000",
        )
    elif facts.uid != 0 and facts.userns_refused_by:
        name = facts.userns_refused_by
        yield Finding(
            "error",
            "userns-refused",
            "ordinary users may create no user namespaces",
            f"{name} forbids it",
            f"sudo sysctl {name}={1 if name.endswith('clone') else 0}, or run as root",
        )
    else:
        yield ok("userns", "user namespaces can be used")
    if facts.uid != 0 and (facts.subuids < SUBUIDS_NEEDED or "newuidmap" not in facts.programs):
        missing = "newuidmap is not installed" if "newuidmap" not in facts.programs else f"{facts.subuids} ids"
        yield Finding(
            "warning",
            "subuid-missing",
            f"{facts.user} has no {SUBUIDS_NEEDED} subordinate ids: units with a user of their own cannot start",
            f"{missing}; ranges are in /etc/subuid and /etc/subgid",
            f"sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {facts.user}; package uidmap",
        )
    if not facts.cgroup or not facts.cgroup_writable:
        yield Finding(
            "note",
            "cgroup-not-writable",
            "an enclave's memory is limited per process, not as a whole",
            "no cgroup of this user can be made" if facts.cgroup else "no cgroup file system is mounted",
            "run as root, or in a delegated systemd scope",
        )
    if wanted.memory_mib is not None and wanted.memory_mib > facts.memory_total_mib:
        yield Finding(
            "error",
            "memory-not-available",
            f"the enclave needs {wanted.memory_mib} MiB, this machine has {facts.memory_total_mib} MiB (E27)",
            "the image is large: an enclave needs four times its size",
            "a larger machine, or a smaller image",
        )
    elif wanted.memory_mib is not None and wanted.memory_mib > facts.memory_available_mib:
        yield Finding(
            "warning",
            "memory-tight",
            f"the enclave may use {wanted.memory_mib} MiB, {facts.memory_available_mib} MiB are available",
            "other programs hold the rest",
            "end some of them, or ask for less memory",
        )
