# SPDX-License-Identifier: Apache-2.0
"""What a sockmap does to vsock, in a virtual machine: needs Linux 6.4, and a loopback that this one's may not have."""

from __future__ import annotations

import lzma
import os
import tempfile
from pathlib import Path

import vsock_guest
from bench_enclave import APP, run
from enclavekit_rbuilds.framework import deb
from enclavekit_rbuilds.framework.debian import open_source

KERNEL = "linux-image-6.12-cloud-amd64"  # Debian's newer kernel for its current release
MODULES = ("vsock", "vmw_vsock_virtio_transport_common", "vsock_loopback")  # in load order
LOCAL_CID = 1  # VMADDR_CID_LOCAL: the transport is virtio's, without a device between
MAIN = f"""
import fcntl, time
def vsock_pair():
    with socket.socket(socket.AF_VSOCK) as listener:
        listener.bind((0xFFFFFFFF, 7000))  # VMADDR_CID_ANY
        listener.listen()
        client = socket.socket(socket.AF_VSOCK)
        client.connect(({LOCAL_CID}, 7000))
        return client, listener.accept()[0]
def main():
    up = struct.pack("16sh14x", b"lo", 0x1 | 0x40)  # IFF_UP, IFF_RUNNING
    with socket.socket() as sock:
        fcntl.ioctl(sock, 0x8914, up)  # SIOCSIFFLAGS
    return [platform.release(), taken_each_way(vsock_pair)]
"""


def taken_from_vsock() -> tuple[str, list[int]]:
    """Return the guest's kernel, and `taken_each_way` of its vsock. Takes a minute or two."""
    with tempfile.TemporaryDirectory(prefix="enclavekit-bench-") as name:
        directory = Path(name)
        os.environ["ENCLAVEKIT_RUNTIME_DIR"] = str(directory / "rt")
        try:
            return _taken(directory)
        finally:
            del os.environ["ENCLAVEKIT_RUNTIME_DIR"]


def _taken(directory: Path) -> tuple[str, list[int]]:
    run(directory, APP / "make_rootfs", "rootfs")
    run(directory, "rbuilds", "build", "--rootfs", "rootfs", "--config", APP / "enclave.yaml", "--output", "bench.eif")
    files = fetch_kernel(directory)
    listed = "\n".join(f'"/modules/{module}.ko"' for module in MODULES)
    extra = {f"modules/{module}.ko": files[f"{module}.ko"] for module in MODULES} | {"etc/init.toml": listed.encode()}
    (directory / "vmlinuz").write_bytes(files["vmlinuz"])
    text = (Path(__file__).parent / "sockmap.py").read_text().replace("from __future__ import annotations\n", "")
    with vsock_guest.our_device(directory) as device:
        kernel = directory / "vmlinuz"
        release, taken = vsock_guest.run_guest(directory / "bench.eif", device, text + MAIN, [], kernel, extra)
    return release, taken


def fetch_kernel(directory: Path) -> dict[str, bytes]:
    """Return the kernel (`vmlinuz`) and MODULES (NAME.ko)."""
    found = {}
    (directory / "apt").mkdir()
    with open_source(str(directory / "apt"), "x86_64") as source:
        names = [name for name in source.dependencies(KERNEL) if name.startswith("linux-image-")]
        (package,) = source.fetch(names)
        with deb.open_data(package.path) as archive:
            for member in archive:
                name = os.path.basename(member.name)
                if name.startswith("vmlinuz-"):
                    found["vmlinuz"] = archive.extractfile(member).read()
                elif name.endswith(".ko.xz") and name.removesuffix(".ko.xz") in MODULES:
                    found[name.removesuffix(".xz")] = lzma.decompress(archive.extractfile(member).read())
    return found
