# SPDX-License-Identifier: Apache-2.0
"""Debian's cloud kernel: prebuilt, fetched and unpacked, never installed.

It has no VIRTIO_MMIO_CMDLINE_DEVICES and no NSM driver, so it is for the emulator; the image's metadata says so.
"""

from __future__ import annotations

import os
import re
import shutil

import msgspec
from enclavekit_core.errors import InputError

from enclavekit_rbuilds.base.cache import cached, key_of
from enclavekit_rbuilds.framework import deb
from enclavekit_rbuilds.framework.debian import SUITE, open_source
from enclavekit_rbuilds.kernel.config import load_config
from enclavekit_rbuilds.kernel.model import Kernel, describe_kernel
from enclavekit_rbuilds.kernel.modules import depends_of, load_order, module_name

RECIPE = "2"  # part of the cache key: raise it when what `_fetch` writes changes
META_PACKAGES = {"x86_64": "linux-image-cloud-amd64", "aarch64": "linux-image-cloud-arm64"}
# find and drive the vsock device of QEMU's microvm; stand for the NSM there
WANTED = ("virtio_mmio", "vmw_vsock_virtio_transport", "cuse")
MODULE = re.compile(r"\./(?:usr/)?lib/modules/.*/([^/]+\.ko)")
MAX_MODULE_BYTES = 64 * 1024 * 1024


class _Record(msgspec.Struct, frozen=True):
    """What the cache keeps beside the files."""

    name: str
    version: str
    modules: tuple[str, ...]


def debian_kernel(arch: str) -> Kernel:
    """Return Debian's cloud kernel, from the cache or freshly fetched. Raises CommandError, InputError."""
    directory = cached("kernel", key_of([RECIPE, SUITE, arch, *WANTED]), lambda work: _fetch(work, arch))
    with open(os.path.join(directory, "kernel.json"), "rb") as source:
        record = msgspec.json.decode(source.read(), type=_Record)
    return describe_kernel(
        os.path.join(directory, "vmlinuz"),
        record.name,
        version=record.version,
        config=load_config(os.path.join(directory, "vmlinuz.config")),
        modules=tuple(os.path.join(directory, name) for name in record.modules),
    )


def _fetch(work: str, arch: str) -> None:
    apt = os.path.join(work, "apt")
    os.mkdir(apt)
    with open_source(apt, arch) as source:
        names = [name for name in source.dependencies(META_PACKAGES[arch]) if name.startswith("linux-image-")]
        if len(names) != 1:
            raise InputError("fetch kernel", META_PACKAGES[arch], f"it depends on {len(names)} images")
        (package,) = source.fetch(names)
    modules = unpack_kernel(package.path, work)
    release = names[0].removeprefix("linux-image-")
    record = _Record(f"Debian {release}", package.version, modules)
    with open(os.path.join(work, "kernel.json"), "wb") as out:
        out.write(msgspec.json.encode(record))
    shutil.rmtree(apt)


def unpack_kernel(package: str, work: str, wanted: tuple[str, ...] = WANTED) -> tuple[str, ...]:
    """Write `vmlinuz`, `vmlinuz.config` and the modules into `work`; return the modules, in load order.

    The package has no modules.dep, which depmod makes when it is installed; each module says itself what it needs.
    """
    everything = os.path.join(work, "modules")
    os.mkdir(everything)
    depends: dict[str, tuple[str, ...]] = {}
    files: dict[str, str] = {}
    with deb.open_data(package) as archive:
        for member in archive:
            target = _target(member.name) if member.isfile() else None
            if target is None or member.size > MAX_MODULE_BYTES:
                continue
            content = archive.extractfile(member)
            assert content is not None
            raw = content.read()
            if target.endswith(".ko"):
                name = module_name(target)
                depends[name], files[name] = depends_of(raw), target
                target = os.path.join("modules", target)
            with open(os.path.join(work, target), "wb") as out:
                out.write(raw)
    for name in ("vmlinuz", "vmlinuz.config"):
        if not os.path.isfile(os.path.join(work, name)):
            raise InputError("fetch kernel", package, f"there is no /boot/{name.replace('vmlinuz.', '')}-* in it")
    order = [files[name] for name in load_order(wanted, depends.get)]
    for name in order:
        os.rename(os.path.join(everything, name), os.path.join(work, name))
    shutil.rmtree(everything)
    return tuple(order)


def _target(member: str) -> str | None:
    if member.startswith("./boot/vmlinuz-"):
        return "vmlinuz"
    if member.startswith("./boot/config-"):
        return "vmlinuz.config"
    match = MODULE.fullmatch(member)
    return match[1] if match else None
