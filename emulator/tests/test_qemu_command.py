# SPDX-License-Identifier: Apache-2.0
import platform
from dataclasses import replace

import pytest
from enclavekit_emulator.qemu_command import (
    NSM_PARAMETER,
    Announcement,
    NitroPlan,
    QemuPlan,
    nitro_command,
    parse_machines,
    qemu_command,
    with_parameters,
)
from enclavekit_emulator.tsc import measure_tsc_khz

PLAN = QemuPlan(
    binary="/usr/bin/qemu-system-x86_64",
    arch="x86_64",
    accelerator="tcg",
    memory_mib=512,
    cpus=2,
    kernel="/proc/self/fd/7",
    initrd="/proc/self/fd/8",
    cmdline="console=ttyS0 x=a b",
    vhost_fd=9,
    announcement=Announcement.CMDLINE,
)


def test_a_machine_like_nitros():
    argv = qemu_command(PLAN)
    assert argv[0] == PLAN.binary
    assert any(word.startswith("microvm,acpi=off") for word in argv)
    assert argv[argv.index("-append") + 1] == PLAN.cmdline
    assert argv[argv.index("-smp") + 1] == "2" and argv[argv.index("-m") + 1] == "512M"
    assert "-no-reboot" in argv and "-nodefaults" in argv
    assert not any("net" in word for word in argv if word != "-nodefaults")


def test_what_differs_with_kernel_and_accelerator():
    assert any("acpi=on" in word for word in qemu_command(replace(PLAN, announcement=Announcement.ACPI)))
    assert "kvm" in qemu_command(replace(PLAN, accelerator="kvm"))


def test_an_arm_machine_finds_its_devices_in_a_device_tree():
    for announcement in Announcement:
        arm = qemu_command(replace(PLAN, arch="aarch64", binary="qemu-system-aarch64", announcement=announcement))
        machine = arm[arm.index("-M") + 1].split(",")
        assert machine[0] == "virt" and "memory-backend=memory" in machine
        assert not any(word.startswith(("acpi", "isa", "pit")) for word in machine)
        assert "vhost-user-vsock-device,chardev=vsock" in arm and "virtio-rng-device,rng=entropy" in arm
        assert arm[arm.index("-kernel") + 1] == PLAN.kernel and arm[arm.index("-initrd") + 1] == PLAN.initrd


@pytest.mark.parametrize("arch", ["x86_64", "aarch64"])
@pytest.mark.parametrize("accelerator", ["kvm", "tcg"])
def test_the_socket_device_is_ours_whatever_the_host_has(arch, accelerator):
    """The kernel's vhost-vsock drops what a guest sends to CID 3, which on Nitro is its parent."""
    argv = qemu_command(replace(PLAN, arch=arch, accelerator=accelerator))
    devices = [argv[index + 1] for index, word in enumerate(argv) if word == "-device"]
    assert [device for device in devices if "vsock" in device] == ["vhost-user-vsock-device,chardev=vsock"]
    assert argv[argv.index("-object") + 1].endswith("share=on"), "else the device would not see the guest's memory"


def test_nitros_own_machine():
    plan = NitroPlan("/usr/bin/qemu-system-x86_64", "tcg", 512, 2, "/proc/self/fd/8", "a=b", 9, "i-1-enc2")
    argv = nitro_command(plan)
    assert argv[argv.index("-M") + 1] == "nitro-enclave,vsock=vsock,id=i-1-enc2"
    assert argv[argv.index("-kernel") + 1] == plan.image and "-initrd" not in argv
    assert "socket,id=vsock,fd=9" in argv
    assert not any("vsock-device" in word or "memory-backend" in word for word in argv), "the machine brings its own"


def test_machine_types_are_read_from_the_help():
    text = "Supported machines are:\nmicrovm   microvm (i386)\n\nnitro-enclave   AWS Nitro Enclave\npc   Standard\n"
    assert parse_machines(text) == {"microvm", "nitro-enclave", "pc"}
    assert parse_machines("") == frozenset()


def test_the_hypervisors_parameter_replaces_the_images_own():
    cmdline = f"a {NSM_PARAMETER}=1 b {NSM_PARAMETER}x=2"
    assert with_parameters(cmdline, {NSM_PARAMETER: "9"}) == f"a b {NSM_PARAMETER}x=2 {NSM_PARAMETER}=9"


@pytest.mark.skipif(platform.machine() != "x86_64", reason="other processors have another counter")
def test_the_counters_frequency_is_measured_the_same_twice():
    first, second = measure_tsc_khz(), measure_tsc_khz()
    assert first and second and abs(first - second) / first < 0.05
