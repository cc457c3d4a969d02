# SPDX-License-Identifier: Apache-2.0
import platform
from dataclasses import replace

import pytest
from enclavekit_emulator.qemu_command import NSM_PARAMETER, Announcement, QemuPlan, qemu_command, with_parameter
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
    vhost_socket="/run/v.sock",
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
    arm = qemu_command(replace(PLAN, arch="aarch64", binary="qemu-system-aarch64"))
    assert any(word.startswith("virt,") for word in arm)


def test_the_hypervisors_parameter_replaces_the_images_own():
    cmdline = f"a {NSM_PARAMETER}=1 b {NSM_PARAMETER}x=2"
    assert with_parameter(cmdline, NSM_PARAMETER, "9") == f"a b {NSM_PARAMETER}x=2 {NSM_PARAMETER}=9"


@pytest.mark.skipif(platform.machine() != "x86_64", reason="other processors have another counter")
def test_the_counters_frequency_is_measured_the_same_twice():
    first, second = measure_tsc_khz(), measure_tsc_khz()
    assert first and second and abs(first - second) / first < 0.05
