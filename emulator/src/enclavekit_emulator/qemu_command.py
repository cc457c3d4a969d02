# SPDX-License-Identifier: Apache-2.0
"""QEMU's command line for an enclave: a machine as small as Nitro's, with a socket device of ours. Pure.

Nitro announces its virtio-mmio devices on the kernel command line and has no ACPI. QEMU's microvm does so with
`acpi=off`, and a kernel with VIRTIO_MMIO_CMDLINE_DEVICES finds them there; others, Debian's among them, need ACPI.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass

BINARIES = {"x86_64": "qemu-system-x86_64", "aarch64": "qemu-system-aarch64"}
NITRO_MACHINE = "nitro-enclave"  # of QEMU 9.2 and later for x86_64, where it was built with libcbor and gnutls
CONSOLES = {"x86_64": "ttyS0", "aarch64": "ttyAMA0"}  # what the machine has; images name what Nitro has, ttyS0
NSM_PARAMETER = "enclavekit.nsm_port"  # on the kernel command line: the parent's vsock port that answers for the NSM


class Announcement(enum.Enum):
    """How the guest finds its devices."""

    CMDLINE = "cmdline"
    """As on Nitro."""
    ACPI = "acpi"


@dataclass(frozen=True, slots=True)
class QemuPlan:
    """What differs from enclave to enclave."""

    binary: str
    arch: str
    accelerator: str
    """kvm or tcg."""
    memory_mib: int
    cpus: int
    kernel: str
    initrd: str
    cmdline: str
    vhost_fd: int
    """A socket that QEMU inherits: its vsock device is at the other end."""
    announcement: Announcement


def with_parameters(cmdline: str, added: Mapping[str, str]) -> str:
    """Return the image's command line with what the hypervisor has to say; drop the image's own of those names."""
    words = [word for word in cmdline.split() if word.partition("=")[0] not in added]
    return " ".join([*words, *(f"{name}={value}" for name, value in added.items())])


@dataclass(frozen=True, slots=True)
class NitroPlan:
    """The same for a QEMU that has Nitro's machine: it reads the image itself, and brings its own NSM."""

    binary: str
    accelerator: str
    memory_mib: int
    cpus: int
    image: str
    cmdline: str
    """What the hypervisor adds; QEMU appends it to the image's own and does not measure it."""
    vhost_fd: int
    module_id: str
    """What its NSM calls itself."""


def parse_machines(text: str) -> frozenset[str]:
    """Return the machine types in the answer to `-M help`."""
    return frozenset(line.split()[0] for line in text.splitlines()[1:] if line.strip())


def qemu_command(plan: QemuPlan) -> list[str]:
    """Return the argv."""
    if plan.arch == "x86_64":
        acpi = "on" if plan.announcement is Announcement.ACPI else "off"
        machine = f"microvm,acpi={acpi},auto-kernel-cmdline=on,rtc=on,isa-serial=on,pit=on,pic=on"
    else:
        machine = "virt,gic-version=max"  # which finds its devices in a device tree, and has no other way
    return [
        plan.binary,
        *("-M", f"{machine},memory-backend=memory"),
        *("-object", f"memory-backend-memfd,id=memory,size={plan.memory_mib}M,share=on"),
        *_processors(plan),
        *_devices(plan.vhost_fd),
        *("-device", "vhost-user-vsock-device,chardev=vsock"),
        *("-kernel", plan.kernel, "-initrd", plan.initrd, "-append", plan.cmdline),
    ]


def nitro_command(plan: NitroPlan) -> list[str]:
    """Return the argv for `-M nitro-enclave`, which is a microvm with a socket device, an NSM and shared memory.

    Source: QEMU, docs/system/i386/nitro-enclave.rst and hw/i386/nitro_enclave.c.
    """
    return [
        plan.binary,
        *("-M", f"{NITRO_MACHINE},vsock=vsock,id={plan.module_id}"),
        *_processors(plan),
        *_devices(plan.vhost_fd),
        *("-kernel", plan.image, "-append", plan.cmdline),
    ]


def _processors(plan: QemuPlan | NitroPlan) -> list[str]:
    is_kvm = plan.accelerator == "kvm"
    return [
        *("-accel", "kvm" if is_kvm else "tcg,thread=multi", "-cpu", "host" if is_kvm else "max"),
        *("-smp", str(plan.cpus), "-m", f"{plan.memory_mib}M"),
    ]


def _devices(vhost_fd: int) -> list[str]:
    return [
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        # line buffering and control characters are the kernel's business: the console is a plain stream of bytes
        *("-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"),
        # Nitro's devices are not transitional
        *("-global", "virtio-mmio.force-legacy=false"),
        *("-object", "rng-random,id=entropy,filename=/dev/urandom", "-device", "virtio-rng-device,rng=entropy"),
        *("-chardev", f"socket,id=vsock,fd={vhost_fd}"),
    ]
