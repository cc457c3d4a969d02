# SPDX-License-Identifier: Apache-2.0
"""The framework on a kernel that we make, on a machine that announces its devices as Nitro does. Takes minutes."""

import json
import subprocess

import pytest

from .conftest import NOTES, need, start_enclave

pytestmark = [pytest.mark.long, pytest.mark.xdist_group("made-kernel")]
MAKE_TIMEOUT_S = 5400  # six minutes on two idle cores


@pytest.fixture(scope="module")
def enclave(shell, notes):
    need("qemu-system-x86_64", "gcc", "flex", "bison", "bc")
    subprocess.run(
        ["rbuilds", "kernel", "make", "--output", "kernel"],
        cwd=shell.directory,
        env=shell.environment,
        capture_output=True,
        timeout=MAKE_TIMEOUT_S,
        check=True,
    )
    words = ["--config", NOTES / "enclave.yaml", "--rootfs", "notes.rootfs", "--authorize", "keys/alice.crt:all"]
    shell.run("rbuilds", "build", *words, "--kernel-source", "made", "--kernel", "kernel", "--output", "made.eif")
    running = start_enclave(shell, shell.directory / "made.eif", machine="qemu")
    yield running
    shell.run("nitro-emu", "terminate-enclave", "--enclave-id", running.id)


def test_image_is_one_that_nitro_would_start(shell, enclave):
    checked = shell.json("eif", "check", "--json", "made.eif")
    assert checked == {"Good": True, "Findings": []}
    assert shell.json("eif", "describe", "made.eif")["Metadata"]["kernel"]["nitro-capable"] is True


def test_devices_are_found_on_the_command_line(shell, enclave):
    record = json.loads((shell.directory / "kernel/kernel.json").read_text())
    assert enclave.exec("sh", "-c", "uname -r").strip() == record["version"]
    assert "virtio_mmio.device=" in enclave.exec("cat", "/proc/cmdline")
    assert enclave.exec("cat", "/proc/modules", expect=1) == "", "there are none to load"


@pytest.mark.parametrize(("image", "way"), [("made.eif", "cmdline"), ("notes.eif", "acpi")])
def test_devices_are_announced_as_the_option_says(shell, enclave, image, way):
    flags = ("--announce-devices", way, "--enclave-name", f"announced-{way}")
    running = start_enclave(shell, shell.directory / image, *flags, machine="qemu")
    try:
        assert ("virtio_mmio.device=" in running.exec("cat", "/proc/cmdline")) == (way == "cmdline")
    finally:
        shell.run("nitro-emu", "terminate-enclave", "--enclave-id", running.id)


def test_a_kernel_that_is_not_for_nitro_finds_nothing_there(shell, enclave):
    """As it would be on Nitro: no vsock, no heartbeat, and nothing left of it."""
    words = ("--eif-path", "notes.eif", "--cpu-count", 1, "--memory", 512, "--machine", "qemu")
    before = shell.json("nitro-emu", "describe-enclaves")
    shell.run("nitro-emu", "run-enclave", *words, "--announce-devices", "cmdline", expect=36)
    assert shell.json("nitro-emu", "describe-enclaves") == before


def test_app_runs_and_is_entered(shell, enclave):
    enclave.exec("sh", "-c", "cat > /data/note", stdin=b"seen by nobody else")
    assert enclave.exec("cat", "/data/note") == "seen by nobody else"
