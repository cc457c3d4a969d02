# SPDX-License-Identifier: Apache-2.0
"""Boots a virtual machine that runs one Python program and nothing else, on a vsock device of ours or of another.

The machine is the emulator's own, kernel and Python are an image's; only /init is replaced. So what is measured is the
device, without the services of an enclave that has just started.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from enclavekit_core.address import Address, UnixAddress, VsockAddress
from enclavekit_eif.cpio import pack_tree
from enclavekit_eif.reader import read_eif
from enclavekit_emulator.qemu_command import Announcement, QemuPlan, qemu_command
from enclavekit_emulator.tsc import measure_tsc_khz

HOST_CID, GUEST_CID = 2, 16  # the other device knows its host by this CID only
HELPER = "vhost-device-vsock"
MARK = "RESULT "
TIMEOUT_S = 600
MEMORY_MIB, CPUS = 1024, 2
INIT = """#!/usr/bin/python3 -I
import ctypes, json, os, re, sys
PROGRAM
libc = ctypes.CDLL(None, use_errno=True)
for fs, where in (("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev")):
    os.makedirs(where, exist_ok=True)
    libc.mount(fs.encode(), where.encode(), fs.encode(), 0, None)
console = os.open("/dev/console", os.O_RDWR)
for number in (0, 1, 2):
    os.dup2(console, number)
for path in re.findall('"([^"]+[.]ko)"', open("/etc/init.toml").read()):
    libc.syscall(ctypes.c_long(313), os.open(path, os.O_RDONLY), b"", 0)  # finit_module
sys.argv[1:] = json.load(open("/arguments"))
try:
    print(MARK + json.dumps(main()), flush=True)
except BaseException:
    import traceback
    traceback.print_exc()
os.sync()
libc.reboot(0x1234567)
"""


@dataclass(frozen=True)
class Device:
    """What carries the guest's vsock."""

    name: str
    chardev: str
    """Of QEMU, without its id."""
    fds: tuple[int, ...]
    directory: Path

    def parent_port(self, port: int) -> Address:
        """Where the host listens for what the guest calls HOST_CID:`port`."""
        return VsockAddress(3, port) if self.fds else UnixAddress(str(self.directory / f"host_{port}"))


@contextlib.contextmanager
def our_device(directory: Path) -> Iterator[Device]:
    theirs, ours = socket.socketpair()
    with socket.socket(socket.AF_UNIX) as hybrid, theirs, ours:
        hybrid.bind(str(directory / "hybrid"))
        hybrid.listen(8)
        serve = (
            "import socket, sys; from enclavekit_emulator.vsock_device.daemon import serve; "
            "serve(*(socket.socket(fileno=int(word)) for word in sys.argv[1:3]), int(sys.argv[3]))"
        )
        fds = (ours.fileno(), hybrid.fileno())
        argv = [sys.executable, "-c", serve, *map(str, fds), str(GUEST_CID)]
        with subprocess.Popen(argv, pass_fds=fds) as process:
            ours.close()
            yield Device("ours", f"fd={theirs.fileno()}", (theirs.fileno(),), directory)
            theirs.close()
            process.wait(TIMEOUT_S)


@contextlib.contextmanager
def other_device(directory: Path) -> Iterator[Device]:
    """The helper in Rust that other tools use; it must be installed."""
    path = directory / "vhost"
    vm = f"guest-cid={GUEST_CID},socket={path},uds-path={directory / 'host'}"
    with subprocess.Popen([HELPER, "--vm", vm], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            while not path.exists() and process.poll() is None:
                time.sleep(0.05)
            yield Device(HELPER, f"path={path}", (), directory)
        finally:
            process.terminate()


def devices() -> list:
    """Return those that are installed; ours is first."""
    return [our_device, *([other_device] if shutil.which(HELPER) else [])]


def run_guest(
    image: Path,
    device: Device,
    program: str,
    arguments: list[object],
    other_kernel: Path | None = None,
    files: Mapping[str, bytes] = MappingProxyType({}),
) -> object:
    """Run `main()` of `program` in a machine of its own and return its result.

    Args:
        other_kernel: instead of the image's.
        files: to have besides, or instead of the image's, by path without the first slash.
    """
    with read_eif(str(image)) as eif, tempfile.TemporaryDirectory(dir=device.directory) as name:
        work = Path(name)
        (work / "root").mkdir()
        (work / "root/init").write_text(INIT.replace("MARK", repr(MARK)).replace("PROGRAM", program))
        (work / "root/init").chmod(0o755)
        (work / "root/arguments").write_text(json.dumps(arguments))
        for path, content in files.items():
            (work / "root" / path).parent.mkdir(exist_ok=True)
            (work / "root" / path).write_bytes(content)
        if other_kernel is None:
            with open(work / "kernel", "wb") as out, eif.open_section(eif.kernel) as source:
                shutil.copyfileobj(source, out)
        with open(work / "initrd", "wb") as out:
            with eif.open_section(eif.ramdisks[0]) as source:
                shutil.copyfileobj(source, out)
            out.write(bytes(-out.tell() % 4))  # the kernel expects the next archive there
            pack_tree(str(work / "root"), out, owner=(0, 0))
        plan = QemuPlan(
            binary="qemu-system-x86_64",
            arch="x86_64",
            accelerator="tcg",
            memory_mib=MEMORY_MIB,
            cpus=CPUS,
            kernel=str(other_kernel or work / "kernel"),
            initrd=str(work / "initrd"),
            cmdline=f"console=ttyS0 panic=-1 reboot=k quiet tsc_early_khz={measure_tsc_khz()}",
            vhost_fd=-1,
            announcement=Announcement.ACPI,
        )
        argv = [word.replace("fd=-1", device.chardev) for word in qemu_command(plan)]
        for fd in device.fds:
            os.set_inheritable(fd, True)
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=TIMEOUT_S, pass_fds=device.fds
        )
    for line in done.stdout.splitlines():
        if line.startswith(MARK):
            return json.loads(line.removeprefix(MARK))
    raise RuntimeError(f"no result from the guest: {done.stdout[-2000:]}{done.stderr[-2000:]}")
