# SPDX-License-Identifier: Apache-2.0
"""QEMU's command line for an enclave: a machine as small as Nitro's, with a socket device of ours. Pure.

Nitro announces its virtio-mmio devices on the kernel command line and has no ACPI. QEMU's microvm does so with
`acpi=off`, and a kernel with VIRTIO_MMIO_CMDLINE_DEVICES finds them there; others, Debian's among them, need ACPI.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

BINARIES = {"x86_64": "qemu-system-x86_64", "aarch64": "qemu-system-aarch64"}
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
    vhost_socket: str
    announcement: Announcement


def with_parameter(cmdline: str, name: str, value: str) -> str:
    """Return the image's command line with what the hypervisor has to say; the image's own of that name is dropped."""
    words = [word for word in cmdline.split() if not word.startswith(f"{name}=")]
    return " ".join([*words, f"{name}={value}"])


def qemu_command(plan: QemuPlan) -> list[str]:
    """Return the argv."""
    if plan.arch == "x86_64":
        acpi = "on" if plan.announcement is Announcement.ACPI else "off"
        machine = f"microvm,acpi={acpi},auto-kernel-cmdline=on,rtc=on,isa-serial=on,pit=on,pic=on"
        processor = "host" if plan.accelerator == "kvm" else "max"
    else:
        machine, processor = "virt", "host" if plan.accelerator == "kvm" else "max"
    accelerator = "kvm" if plan.accelerator == "kvm" else "tcg,thread=multi"
    return [
        plan.binary,
        *("-M", f"{machine},memory-backend=memory"),
        *("-object", f"memory-backend-memfd,id=memory,size={plan.memory_mib}M,share=on"),
        *("-accel", accelerator, "-cpu", processor, "-smp", str(plan.cpus), "-m", f"{plan.memory_mib}M"),
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        # line buffering and control characters are the kernel's business: the console is a plain stream of bytes
        *("-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"),
        # Nitro's devices are not transitional
        *("-global", "virtio-mmio.force-legacy=false"),
        *("-object", "rng-random,id=entropy,filename=/dev/urandom", "-device", "virtio-rng-device,rng=entropy"),
        *("-chardev", f"socket,id=vsock,path={plan.vhost_socket}", "-device", "vhost-user-vsock-device,chardev=vsock"),
        *("-kernel", plan.kernel, "-initrd", plan.initrd, "-append", plan.cmdline),
    ]
