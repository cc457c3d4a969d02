# SPDX-License-Identifier: Apache-2.0
"""The kernel of an image: the builder's file, or Debian's cloud kernel, fetched and unpacked but never installed.

Debian's has no VIRTIO_MMIO_CMDLINE_DEVICES and no NSM driver, so it is for the emulator; the image's metadata says so.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tarfile
from dataclasses import dataclass

import msgspec
from enclavekit_core.errors import CommandError, InputError, describe_cause

from enclavekit_rbuilds.base.cache import cached, key_of
from enclavekit_rbuilds.framework.debian import SUITE, PackageSource

RECIPE = "1"  # part of the cache key: raise it when what `_fetch` writes changes
META_PACKAGES = {"x86_64": "linux-image-cloud-amd64", "aarch64": "linux-image-cloud-arm64"}
# what finds and drives a vsock device in QEMU's microvm, in the order in which they are loaded
MODULES = (
    *("virtio", "virtio_ring", "virtio_mmio"),
    *("vsock", "vmw_vsock_virtio_transport_common", "vmw_vsock_virtio_transport"),
)
MAX_KERNEL_BYTES = 256 * 1024 * 1024  # a distribution's vmlinux, uncompressed, has 60


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel image on disk and what is known about it."""

    path: str
    name: str
    version: str
    nitro_capable: bool | None
    """Whether it finds Nitro's devices; None if nobody has looked."""
    modules: tuple[str, ...] = ()
    """Module files to pack, in load order."""


class _Record(msgspec.Struct, frozen=True):
    """What the cache keeps beside the files."""

    name: str
    version: str
    modules: tuple[str, ...]


def kernel_from_file(path: str) -> Kernel:
    """Return the builder's kernel. Raises InputError if the file cannot be one."""
    try:
        size = os.stat(path).st_size
        with open(path, "rb") as source:
            head = source.read(0x210)
    except OSError as exc:
        raise InputError("read kernel", path, describe_cause(exc)) from exc
    if not 0 < size <= MAX_KERNEL_BYTES:
        raise InputError("use kernel", path, f"it has {size} bytes")
    version = "unknown"
    if head[0x202:0x206] == b"HdrS":  # Documentation/arch/x86/boot.rst: kernel_version is an offset from 0x200
        offset = int.from_bytes(head[0x20E:0x210], "little") + 0x200
        with open(path, "rb") as source:
            source.seek(offset)
            words = source.read(128).split(b"\0")[0].split()
        version = words[0].decode("ascii", "replace") if words else version
    return Kernel(path, os.path.basename(path), version, None)


def debian_kernel(arch: str) -> Kernel:
    """Return Debian's cloud kernel, from the cache or freshly fetched. Raises CommandError, InputError."""
    directory = cached("kernel", key_of([RECIPE, SUITE, arch, *MODULES]), lambda work: _fetch(work, arch))
    with open(os.path.join(directory, "kernel.json"), "rb") as source:
        record = msgspec.json.decode(source.read(), type=_Record)
    modules = tuple(os.path.join(directory, name) for name in record.modules)
    return Kernel(os.path.join(directory, "vmlinuz"), record.name, record.version, False, modules)


def _fetch(work: str, arch: str) -> None:
    apt = os.path.join(work, "apt")
    os.mkdir(apt)
    source = PackageSource(apt, arch)
    names = [name for name in source.dependencies(META_PACKAGES[arch]) if name.startswith("linux-image-")]
    if len(names) != 1:
        raise InputError("fetch kernel", META_PACKAGES[arch], f"it depends on {len(names)} images")
    (package,) = source.fetch(names)
    modules = _unpack(package.path, work)
    release = names[0].removeprefix("linux-image-")
    record = _Record(f"Debian {release}", package.version, modules)
    with open(os.path.join(work, "kernel.json"), "wb") as out:
        out.write(msgspec.json.encode(record))
    shutil.rmtree(apt)


def _unpack(deb: str, work: str) -> tuple[str, ...]:
    """Write `vmlinuz` and the modules into `work`; return the modules that there are, in load order."""
    wanted = re.compile(rf"\./(?:usr/)?lib/modules/.*/({'|'.join(MODULES)})\.ko")
    argv = ["dpkg-deb", "--fsys-tarfile", deb]
    found = set()
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as program:
        assert program.stdout is not None and program.stderr is not None
        with tarfile.open(fileobj=program.stdout, mode="r|") as archive:
            for member in archive:
                module = wanted.fullmatch(member.name)
                if module is None and not member.name.startswith("./boot/vmlinuz-"):
                    continue
                target = f"{module[1]}.ko" if module else "vmlinuz"
                content = archive.extractfile(member)
                assert content is not None
                with open(os.path.join(work, target), "wb") as out:
                    shutil.copyfileobj(content, out)
                found.add(target)
        complaint = program.stderr.read().decode(errors="replace")
    if program.returncode:
        raise CommandError(f"unpack {deb}", argv, program.returncode, complaint)
    if "vmlinuz" not in found:
        raise InputError("fetch kernel", deb, "there is no /boot/vmlinuz in it")
    return tuple(f"{name}.ko" for name in MODULES if f"{name}.ko" in found)
