# SPDX-License-Identifier: Apache-2.0
"""A made kernel boots, on a machine that announces its devices on the command line as Nitro does. Takes minutes."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from enclavekit_core.errors import EnclavekitError
from enclavekit_eif.cpio import pack_tree
from enclavekit_rbuilds.base.cache_store import list_entries
from enclavekit_rbuilds.base.progress import Progress
from enclavekit_rbuilds.cli import main
from enclavekit_rbuilds.init_c.build import compile_init
from enclavekit_rbuilds.kernel.config import read_config_of
from enclavekit_rbuilds.kernel.fragment import merge_fragments, our_fragment, render_fragment
from enclavekit_rbuilds.kernel.made import ENTRY, read_made, read_record
from enclavekit_rbuilds.kernel.make import KernelRequest, make_kernel
from enclavekit_rbuilds.kernel.model import Kernel
from enclavekit_rbuilds.kernel.rules import find_lacks

QEMU = "qemu-system-x86_64"
# of AWS's blobs for x86_64
AWS_CMDLINE = (
    "reboot=k panic=30 pci=off nomodules console=ttyS0 i8042.noaux i8042.nomux i8042.nopnp i8042.dumbkbd "
    "random.trust_cpu=on"
)
MACHINE = [
    *("-M", "microvm,acpi=off,auto-kernel-cmdline=on", "-accel", "tcg", "-cpu", "max", "-m", "256", "-smp", "2"),
    *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio"),
    *("-global", "virtio-mmio.force-legacy=false"),
    *("-object", "rng-random,id=r,filename=/dev/urandom", "-device", "virtio-rng-device,rng=r"),
]
BOOT_TIMEOUT_S = 300
# says what it sees and ends the machine; PID 1 with nothing before it
PROBE = r"""
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>
static void show(const char *path) {
    char line[4096];
    FILE *file = fopen(path, "r");
    if (file && fgets(line, sizeof line, file)) printf("%s %s", path, line);
    else printf("%s -\n", path);
}
int main(void) {
    struct stat status;
    mkdir("/proc", 0755); mkdir("/sys", 0755);
    mount("proc", "/proc", "proc", 0, 0); mount("sys", "/sys", "sysfs", 0, 0);
    printf("PROBE pid %d\n", getpid());
    show("/proc/sys/kernel/osrelease");
    show("/sys/class/misc/hw_random/rng_current");
    show("/proc/cmdline");
    show("/sys/devices/system/cpu/online");
    show("/proc/sys/kernel/unprivileged_bpf_disabled");
    printf("mem %d config %d ", stat("/dev/mem", &status) == 0, stat("/proc/config.gz", &status) == 0);
    printf("kcore %d modules %d\n", stat("/proc/kcore", &status) == 0, stat("/proc/modules", &status) == 0);
    fflush(stdout);
    reboot(RB_AUTOBOOT);
    return 1;
}
"""

pytestmark = [pytest.mark.long, pytest.mark.xdist_group("made-kernel")]


@pytest.fixture(scope="module")
def kernel() -> Kernel:
    """A kernel of our configuration from the cache; made now if there is none."""
    for program in (QEMU, "gcc"):
        if shutil.which(program) is None:
            pytest.skip(f"needs {program}")
    if os.uname().machine != "x86_64":
        pytest.skip("makes and boots x86_64 kernels only")
    ours = hashlib.sha256(render_fragment(merge_fragments([our_fragment("x86_64")])).encode()).hexdigest()
    for entry in list_entries():
        if entry.name == ENTRY and read_record(entry.path).fragment_sha256 == ours:
            return read_made(entry.path)
    try:
        made = make_kernel(KernelRequest(), Progress())
    except EnclavekitError as exc:
        pytest.skip(f"cannot make a kernel here: {exc}")
    return read_made(made.directory)


def boot(kernel: Kernel, root: Path, tmp_path: Path) -> list[str]:
    """Boot a ramdisk; return the console when the machine has ended itself."""
    ramdisk = tmp_path / "ramdisk"
    with ramdisk.open("wb") as out:
        pack_tree(str(root), out, owner=(0, 0))
    done = subprocess.run(
        [QEMU, *MACHINE, "-kernel", kernel.path, "-initrd", str(ramdisk), "-append", AWS_CMDLINE],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=BOOT_TIMEOUT_S,
    )
    assert done.returncode == 0, done.stderr
    return [line.rstrip("\r") for line in done.stdout.splitlines()]


def test_it_finds_what_is_announced_on_its_command_line(kernel: Kernel, tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "dev").mkdir(parents=True)
    source = tmp_path / "probe.c"
    source.write_text(PROBE)
    subprocess.run(["gcc", "-static", "-O1", "-o", root / "init", source], check=True)
    console = boot(kernel, root, tmp_path)
    seen = dict(line.split(" ", 1) for line in console if line.startswith(("/proc/", "/sys/")) and " " in line)
    assert "PROBE pid 1" in console
    assert seen["/proc/sys/kernel/osrelease"] == kernel.version
    assert seen["/proc/cmdline"].startswith(AWS_CMDLINE) and "virtio_mmio.device=" in seen["/proc/cmdline"]
    assert seen["/sys/class/misc/hw_random/rng_current"].startswith("virtio_rng"), "the announced device works"
    assert seen["/sys/devices/system/cpu/online"] == "0-1"
    assert seen["/proc/sys/kernel/unprivileged_bpf_disabled"] in ("1", "2")
    assert "mem 0 config 1 kcore 0 modules 0" in console


def test_c_init_ends_where_nobody_answers(kernel: Kernel, tmp_path: Path) -> None:
    root = tmp_path / "root"
    for name in ("dev", "rootfs"):
        (root / name).mkdir(parents=True)
    shutil.move(compile_init(str(tmp_path), "x86_64"), root / "init")
    (root / "cmd").write_text("/bin/app\n")
    console = boot(kernel, root, tmp_path)
    assert any(line.startswith("init: cannot connect to the parent's heartbeat") for line in console)
    assert not any("Kernel panic" in line for line in console)


def test_image_with_the_c_init_runs_in_a_virtual_machine(kernel: Kernel, tmp_path: Path) -> None:
    nitro_emu = Path(sys.executable).with_name("nitro-emu")
    if not nitro_emu.exists():
        pytest.skip("needs nitro-emu")
    app = tmp_path / "app/bin"
    app.mkdir(parents=True)
    report = Path(__file__).parent / "init_c/report.c"
    subprocess.run(["gcc", "-static", "-O1", "-o", app / "report", report], check=True)
    image = tmp_path / "report.eif"
    words = ["--rootfs", tmp_path / "app", "--cmd", "report --alone", "--user", "33:44", "--init", "c", "--no-evidence"]
    choice = ["--kernel-source", "made", "--kernel", kernel.path, "--output", image, "--quiet"]
    assert main(["build", *map(str, [*words, *choice])]) == 0
    launch = ["run-enclave", "--eif-path", image, "--memory", "256", "--cpu-count", "1", "--machine", "qemu"]
    done = subprocess.run(
        [nitro_emu, *launch, "--attach-console"], capture_output=True, text=True, timeout=BOOT_TIMEOUT_S
    )
    assert '"argv": ["/bin/report", "--alone"]' in done.stdout, done.stdout + done.stderr
    assert '"uid": 33, "gid": 44' in done.stdout and '"reaped": 1' in done.stdout
    assert "init: the program exited with 7" in done.stdout


def test_it_says_itself_how_it_was_configured(kernel: Kernel) -> None:
    config = read_config_of(kernel.path)
    assert config is not None and config.version == kernel.version
    assert find_lacks(config) == [] and kernel.nitro_capable is True


def test_making_it_again_elsewhere_gives_the_same_bytes(
    kernel: Kernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if os.environ.get("ENCLAVEKIT_TEST_KERNEL_TWICE") != "1":
        pytest.skip("takes as long as a kernel: set ENCLAVEKIT_TEST_KERNEL_TWICE=1")
    again = []
    for name, zone, mask in (("one", "Asia/Tokyo", 0o077), ("two", "America/Caracas", 0o002)):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / name))
        monkeypatch.setenv("TZ", zone)
        before = os.umask(mask)
        try:
            again.append(make_kernel(KernelRequest(), Progress(io.StringIO())).record)
        finally:
            os.umask(before)
    assert again[0] == again[1]
